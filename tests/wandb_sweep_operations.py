"""How does the loopback W&B server run a sweep whose runs a local scheduler enqueues, and agents carry out?"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import yaml
from graphql import GraphQLError
from wandb_records import Project, Run, Sweep, make_id, now

# Must stand among the backend's features, or the client refuses to schedule.
SCHEDULER_FEATURE = "SWEEPS_LOCAL_SCHEDULER"


@dataclass
class Agent:
    """A process that carries out the runs of a sweep; `commands` is what it was sent."""

    id: str
    project: Project
    sweep: Sweep
    commands: list[dict[str, Any]] = field(default_factory=list)


class SweepOperations:
    """The part of the backend that concerns sweeps."""

    entity: str
    projects: dict[tuple[str, str], Project]
    agents: dict[str, Agent]

    def ensure_project(self, entity: str, name: str) -> Project:
        raise NotImplementedError

    def _find_sweep(self, sweep_id: str) -> tuple[Project, Sweep]:
        for project in self.projects.values():
            for sweep in project.sweeps.values():
                if sweep.id == sweep_id:
                    return project, sweep
        raise GraphQLError(f"sweep {sweep_id} not found")

    def resolve_upsert_sweep(self, input: dict[str, Any]) -> dict[str, Any]:
        if input.get("id"):
            project, sweep = self._find_sweep(input["id"])
        else:
            project = self.ensure_project(input.get("entity_name") or self.entity, input["project_name"])
            name = f"sweep{len(project.sweeps) + 1:03d}"
            method = (yaml.safe_load(input["config"]) or {}).get("method")
            sweep = project.sweeps[name] = Sweep(name, input["config"], method)
            sweep.controller_run_name = f"controller-{name}"
        for key in ("config", "state", "description", "display_name"):
            if input.get(key) is not None:
                setattr(sweep, key, input[key])
        return {"sweep": project.resolve_sweep(sweep.name), "config_validation_warnings": []}

    def resolve_enqueue_sweep_run(self, input: dict[str, Any]) -> dict[str, Any]:
        project, sweep = self._find_sweep(input["id"])
        name = f"{sweep.name}-run-{len(project.runs_of_sweep(sweep.name)) + 1}"
        project.runs[name] = Run(
            project,
            name,
            input.get("display_name") or name,
            created_at=now(),
            config=json.loads(input["config"]),
            state="pending",
            sweep_name=sweep.name,
        )
        return {"id": name, "run_queue_item_id": None}

    def resolve_stop_run(self, input: dict[str, Any]) -> dict[str, bool]:
        for project in self.projects.values():
            for run in project.runs.values():
                if run.id == input["id"]:
                    run.state = "killed"
                    return {"success": True}
        return {"success": False}

    def resolve_create_agent(self, input: dict[str, Any]) -> dict[str, Any]:
        project = self.projects[input.get("entity_name") or self.entity, input["project_name"]]
        agent = Agent(make_id("Agent", len(self.agents) + 1), project, project.sweeps[input["sweep"]])
        self.agents[agent.id] = agent
        return {"agent": agent}

    def resolve_agent_heartbeat(self, input: dict[str, Any]) -> dict[str, Any]:
        agent = self.agents[input["id"]]
        commands: list[dict[str, Any]] = []
        runs = agent.project.runs_of_sweep(agent.sweep.name)
        waiting = [run for run in runs if run.state == "pending"]
        if agent.sweep.state in ("FINISHED", "CANCELED"):
            commands = [{"type": "exit"}]
        elif waiting and not json.loads(input.get("run_state") or "{}"):
            # From now on it is this agent's, and counts as running, as W&B has it.
            waiting[0].state = "running"
            program = yaml.safe_load(agent.sweep.config).get("program")
            commands = [{"type": "run", "run_id": waiting[0].name, "args": waiting[0].config, "program": program}]
        agent.commands += commands
        return {"agent": agent, "commands": json.dumps(commands)}

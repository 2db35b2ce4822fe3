"""What does the loopback W&B server remember of uploads: files, and the artifacts' versions and manifests?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wandb_records import Project, Run, make_id, now, paginate


@dataclass(eq=False)
class StoredFile:
    """A file that a client announced and, once `content` is set, uploaded."""

    name: str
    base_url: str
    key: str
    artifact: Artifact | None = field(default=None, repr=False)
    md5: str | None = None
    mimetype: str | None = None
    content: bytes | None = field(default=None, repr=False)
    updated_at: str = field(default_factory=now)

    upload_headers = ()
    upload_multipart_urls = None

    @property
    def id(self) -> str:
        return make_id("File", self.key)

    @property
    def display_name(self) -> str:
        return self.name

    @property
    def storage_path(self) -> str:
        return self.key

    @property
    def digest(self) -> str | None:
        return self.md5

    @property
    def upload_url(self) -> str:
        return f"{self.base_url}/storage/{self.key}"

    @property
    def direct_url(self) -> str:
        return self.upload_url

    @property
    def size_bytes(self) -> int:
        return len(self.content or b"")

    def resolve_url(self, upload: bool | None = None) -> str:
        return self.upload_url


@dataclass(eq=False)
class ArtifactManifest:
    """A version's list of files: a JSON document that the client uploads like a file."""

    id: str
    file: StoredFile
    digest: str = ""

    @property
    def entries(self) -> dict[str, dict[str, Any]]:
        """What the document says of each file, by its path."""
        if self.file.content is None:
            return {}
        contents: dict[str, dict[str, Any]] = json.loads(self.file.content)["contents"]
        return contents


@dataclass(eq=False)
class Artifact:
    """One version of an artifact; it gets its index when the client commits it."""

    id: str
    artifact_sequence: ArtifactSequence = field(repr=False)
    digest: str
    created_by: Run | None = field(repr=False)
    digest_algorithm: str = "MANIFEST_MD5"
    description: str | None = None
    metadata: str | None = None
    tag_names: list[str] = field(default_factory=list)
    aliases_wanted: list[str] = field(default_factory=list)
    history_step: int | None = None
    state: str = "PENDING"
    version_index: int | None = None
    created_at: str = field(default_factory=now)
    updated_at: str = field(default_factory=now)
    current_manifest: ArtifactManifest | None = None
    uploads: dict[str, StoredFile] = field(default_factory=dict)

    # Inherited, as the next line says.
    ttl_duration_seconds = -1
    ttl_is_inherited = True
    commit_hash = None

    @property
    def name(self) -> str:
        """The collection's name with the version: "table:v0"."""
        return f"{self.artifact_sequence.name}:v{self.version_index}"

    @property
    def type_name(self) -> str:
        return self.artifact_sequence.type_name

    @property
    def files(self) -> dict[str, bytes]:
        """The bytes of every file of the manifest by its path; files that are only referred to are left out."""
        stored = {path: self.find_file(path) for path in self._entries()}
        return {path: file.content for path, file in stored.items() if file is not None and file.content is not None}

    def _entries(self) -> dict[str, dict[str, Any]]:
        return self.current_manifest.entries if self.current_manifest else {}

    def find_file(self, path: str) -> StoredFile | None:
        """Return the file behind a path of the manifest, which may have come with an earlier version."""
        if path in self.uploads:
            return self.uploads[path]
        digest = self._entries()[path]["digest"]
        earlier = (file for version in self.artifact_sequence.versions for file in version.uploads.values())
        return next((file for file in earlier if file.digest == digest), None)

    def resolve_artifact_type(self) -> ArtifactType:
        return ArtifactType(self.type_name, self.artifact_sequence.project)

    def resolve_tags(self) -> list[dict[str, str]]:
        return [{"id": make_id("Tag", name), "name": name} for name in self.tag_names]

    def resolve_size(self) -> int:
        return sum(map(len, self.files.values()))

    def resolve_file_count(self) -> int:
        return len(self._entries())

    def resolve_aliases(self) -> list[dict[str, Any]]:
        return self.artifact_sequence.list_aliases(self)


@dataclass(eq=False)
class ArtifactSequence:
    """A collection of versions; `aliases` says which version each alias stands for."""

    project: Project = field(repr=False)
    name: str
    type_name: str
    versions: list[Artifact] = field(default_factory=list)
    aliases: dict[str, Artifact] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return make_id("ArtifactCollection", self.project.entity_name, self.project.name, self.name)

    @property
    def latest_artifact(self) -> Artifact | None:
        return self.aliases.get("latest")

    @property
    def digest_algorithm(self) -> str:
        return "MANIFEST_MD5"

    def commit(self, artifact: Artifact) -> None:
        """Give a version its index and its aliases; "latest" is the newest version's."""
        if artifact.state == "COMMITTED":
            return
        artifact.state, artifact.version_index = "COMMITTED", len(self.versions)
        self.versions.append(artifact)
        for alias in ["latest", *artifact.aliases_wanted]:
            self.aliases[alias] = artifact

    def delete(self, artifact: Artifact) -> None:
        """Delete a version: its index is not given again, and its aliases are free."""
        artifact.state = "DELETED"
        self.aliases = {alias: named for alias, named in self.aliases.items() if named is not artifact}

    def list_aliases(self, artifact: Artifact) -> list[dict[str, Any]]:
        names = [alias for alias, named in self.aliases.items() if named is artifact]
        return [
            {"id": make_id("ArtifactAlias", self.name, name), "alias": name, "artifact_collection": self}
            for name in names
        ]

    def resolve_artifact_membership(self, alias_name: str) -> Membership | None:
        found = self.aliases.get(alias_name) or next(
            (one for one in self.versions if f"v{one.version_index}" == alias_name and one.state == "COMMITTED"), None
        )
        return found and Membership(found, self)


@dataclass(eq=False)
class Membership:
    """A version as a member of its collection."""

    artifact: Artifact
    artifact_collection: ArtifactSequence

    @property
    def id(self) -> str:
        return make_id("ArtifactCollectionMembership", self.artifact.id)

    @property
    def version_index(self) -> int | None:
        return self.artifact.version_index

    @property
    def created_at(self) -> str:
        return self.artifact.created_at

    @property
    def aliases(self) -> list[dict[str, Any]]:
        return self.artifact.resolve_aliases()

    def resolve_files(
        self, names: list[str] | None = None, after: str | None = None, first: int | None = None
    ) -> dict[str, Any]:
        files = [self.artifact.find_file(path) for path in self.artifact.files if not names or path in names]
        return paginate(files, after, first)


@dataclass(eq=False)
class ArtifactType:
    """The collections of one type in a project."""

    name: str
    project: Project

    def resolve_artifact_collection(self, name: str) -> ArtifactSequence | None:
        found = self.project.collections.get(name)
        return found if found is not None and found.type_name == self.name else None


class ArtifactStore:
    """Create artifacts as the client's mutations ask, and find them again by their ids."""

    def __init__(self) -> None:
        self.base_url = ""
        self.by_id: dict[str, Artifact] = {}
        self.ids_by_client_id: dict[str, str] = {}
        self.manifests: dict[str, ArtifactManifest] = {}
        self.files_by_key: dict[str, StoredFile] = {}

    def create(self, project: Project, run: Run | None, wanted: Mapping[str, Any]) -> Artifact:
        names = wanted.get("artifact_collection_names") or [wanted["artifact_collection_name"]]
        sequence = project.collections.get(names[0])
        if sequence is None:
            sequence = ArtifactSequence(project, names[0], wanted["artifact_type_name"])
            project.collections[names[0]] = sequence
        artifact = self._create_version(sequence, run, wanted)
        for client_id, server_id in [("client_id", artifact.id), ("sequence_client_id", sequence.id)]:
            if wanted.get(client_id):
                self.ids_by_client_id[wanted[client_id]] = server_id
        if run is not None and artifact not in run.logged_artifacts:
            run.logged_artifacts.append(artifact)
        return artifact

    def _create_version(self, sequence: ArtifactSequence, run: Run | None, wanted: Mapping[str, Any]) -> Artifact:
        aliases = [entry["alias"] for entry in wanted.get("aliases") or []]
        latest = sequence.latest_artifact
        if wanted.get("enable_digest_deduplication") and latest is not None and latest.digest == wanted["digest"]:
            sequence.aliases.update({alias: latest for alias in aliases})
            return latest
        artifact = Artifact(
            id=make_id("Artifact", len(self.by_id)),
            artifact_sequence=sequence,
            digest=wanted["digest"],
            created_by=run,
            digest_algorithm=wanted.get("digest_algorithm") or "MANIFEST_MD5",
            description=wanted.get("description"),
            metadata=wanted.get("metadata"),
            tag_names=[entry["tag_name"] for entry in wanted.get("tags") or []],
            aliases_wanted=aliases,
            history_step=wanted.get("history_step"),
        )
        self.by_id[artifact.id] = artifact
        return artifact

    def create_manifest(self, artifact: Artifact, name: str, digest: str) -> ArtifactManifest:
        manifest_id = make_id("ArtifactManifest", len(self.manifests))
        file = self.announce_file(name, f"manifests/{len(self.manifests)}")
        artifact.current_manifest = ArtifactManifest(manifest_id, file, digest)
        self.manifests[manifest_id] = artifact.current_manifest
        return artifact.current_manifest

    def announce_file(self, name: str, key: str, **attributes: Any) -> StoredFile:
        """Prepare the place where a client is going to upload a file to."""
        self.files_by_key[key] = StoredFile(name, self.base_url, key, **attributes)
        return self.files_by_key[key]

    def announce_artifact_file(self, wanted: Mapping[str, Any]) -> StoredFile:
        artifact = self.by_id[wanted["artifact_id"]]
        # Which of the two the client sends hangs on the feature ARTIFACT_DIGEST_ALGORITHM.
        digest = wanted.get("md5") or wanted.get("digest")
        key = f"artifacts/{len(self.files_by_key)}"
        file = self.announce_file(wanted["name"], key, artifact=artifact, md5=digest, mimetype=wanted.get("mimetype"))
        artifact.uploads[file.name] = file
        return file

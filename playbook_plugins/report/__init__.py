"""What does the whole study say, in one page? Findings in plain words first, then the plots in the playbook's order.

Imports charts/ and analysis/ and nothing else of this package. The page is one file that opens without a network.
"""

from playbook_plugins.report.page import write_report as write_report
from playbook_plugins.report.wording import VERDICTS as VERDICTS
from playbook_plugins.report.wording import Quiet as Quiet
from playbook_plugins.report.wording import Wording as Wording
from playbook_plugins.report.wording import word as word
from playbook_plugins.report.wording import word_quiet as word_quiet

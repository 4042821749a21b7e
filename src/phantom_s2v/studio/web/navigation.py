"""The links of every page, in their order. The table of access decides who sees them."""

from phantom_s2v.studio.problems import N_

TABS = (  # below /projects/{project_id}
    ("", N_("Overview")),
    ("/generate", N_("Generate")),
    ("/jobs", N_("Queue")),
    ("/subjects", N_("Subjects")),
    ("/rights", N_("Rights")),
    ("/policy", N_("Policy")),
    ("/reviews", N_("Review")),
    ("/members", N_("People")),
    ("/settings", N_("Settings")),
)
LINKS = (
    ("/people", N_("Accounts")),
    ("/certificate", N_("Signature")),
    ("/audit", N_("Audit log")),
    ("/verify", N_("Verify")),
    ("/notices", N_("Notices")),
)

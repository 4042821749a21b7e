"""The links of every page, in their order. The table of access decides who sees them."""

from phantom_s2v.studio.problems import N_

TABS = (  # below /projects/{project_id}
    ("", N_("Overview")),
    ("/members", N_("People")),
)
LINKS: tuple[tuple[str, str], ...] = ()

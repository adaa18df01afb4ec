"""The last module that the fork server imports; it makes each later fork cheap, as a standby process does."""

from wcl_core import standby

standby.use_huge_pages()

"""Methods that go over what they have written: drafts, revisions, early exits, calls of tools."""

"""Methods of several roles: layers of calls, plans and threads, judges, memories."""

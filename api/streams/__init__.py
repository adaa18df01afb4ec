"""Server-sent events: routes, responses, the watcher of the database, and the feeds."""

from api.streams import routes

ROUTERS = (routes.router,)

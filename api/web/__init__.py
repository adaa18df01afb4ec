"""The web pages: one page is one module, one template, one style sheet and one script."""

from api.web import actions
from api.web.pages import PAGES

ROUTERS = (actions.router, *(page.router for page in PAGES))

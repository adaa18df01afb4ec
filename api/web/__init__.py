"""The web pages: one page is one module, one template, one style sheet and one script."""

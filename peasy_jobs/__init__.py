"""A job queue for Django that lives in the site's own database."""

__version__ = "1.0.0"

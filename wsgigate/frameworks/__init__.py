"""What joins the middlewares to Django; each module needs its framework."""

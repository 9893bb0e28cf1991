"""What joins the middlewares to Flask and Django; each module needs its framework."""

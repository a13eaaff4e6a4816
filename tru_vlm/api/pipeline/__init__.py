"""A request's way: the model, the plan, the stages, and what bounds them.  It knows no route."""

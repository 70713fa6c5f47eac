"""The optimizer, one step, many steps in one dispatch, the loop and exact evaluation; the plan and its validation."""

"""ir.Model -> ir.Model with the same answers: canonical form, exact rewrites and the search among them."""

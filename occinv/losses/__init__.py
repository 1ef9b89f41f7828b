"""M: how alike two features must be, and the parameters it needs to say so."""

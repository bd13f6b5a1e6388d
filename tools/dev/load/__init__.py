"""A fleet of devices against one server: what it answers per second, how soon, and against what that is to be held."""

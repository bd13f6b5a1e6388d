"""A daemon's day compressed: many requests while its server dies, its network crawls and its disk fills."""

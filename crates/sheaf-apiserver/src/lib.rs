//! REST, watch, admission, authentication and authorization.

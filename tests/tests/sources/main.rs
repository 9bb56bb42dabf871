//! What must be true of the sources themselves.

mod rooms;
mod tidy;

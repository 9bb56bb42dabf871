//! What must be true of the sources themselves.

mod commands;
mod rooms;
mod tidy;

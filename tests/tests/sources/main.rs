//! What must be true of the sources themselves.

mod commands;
mod documented;
mod markdown;
mod rooms;
mod tidy;

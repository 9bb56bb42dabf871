//! What must be true of the sources and of the documents themselves.

mod commands;
mod documented;
mod markdown;
mod rooms;
mod tidy;

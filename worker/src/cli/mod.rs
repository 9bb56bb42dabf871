//! The command line of `worker`: its [`arguments`] and what each command does.

pub mod arguments;
pub mod commands;
mod inspect;

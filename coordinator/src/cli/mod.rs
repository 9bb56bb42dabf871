//! The command line of `coordinator`: its [`arguments`] and what each command does.

pub mod arguments;
pub mod commands;

//! What peers that mean harm, or cannot help it, cost a cluster. Most of these tests
//! time the steps of a run, so they are a program of their own, with few others beside
//! them.

mod hostile;
mod lies;
mod locked_down;
mod newcomers;

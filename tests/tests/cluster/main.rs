//! Whole clusters of processes on this machine, one room for each kind of trouble.
//! They are one program, so that its threads always have a test to run.

// What any run of a cluster does.
mod balance;
mod processes;
mod trace;
mod weights;
mod worlds;

// Processes that die, stop, come and go.
mod chaos;
mod coordinator;
mod dense;
mod elastic;
mod engines;
mod faults;
mod signals;
mod stalls;

// What is on disk.
mod storage;

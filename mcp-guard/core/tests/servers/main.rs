//! Orders about single servers: which, and when.

mod reaps;
mod story;
mod suspends;

//! Which limit wins when two disagree, as stories with times: the table of `limits` row by row, and every
//! order in which two events can meet.

mod orders;
mod repair;
mod rows;
mod world;

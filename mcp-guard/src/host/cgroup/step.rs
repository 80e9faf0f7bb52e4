//! The steps of a walk through populated cgroups.

/// The result of one step of a walk, which takes a few system calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkStep {
    /// It entered a cgroup, in which the walk is now.
    Entered,
    /// It begins again, in the first cgroup. It will come to each process that it came to before, and to each
    /// cgroup on the way, perhaps more than once.
    Again,
    /// It passed something that is not entered.
    Passed,
    Over,
}

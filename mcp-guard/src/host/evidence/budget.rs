//! The bounds of one look at a server, and of one search on behalf of many guards.

use std::{
    io,
    time::{Duration, Instant},
};

use mcp_guard_core::id::Pid;

use crate::host::{clock, process::OpenProcess};

/// Most CPU time of one look. A container decides how many descriptors and sockets are read, and how long a question
/// about a socket takes.
const MOST_CPU: Duration = Duration::from_millis(50);

/// The CPU time of this thread at which a look is given up.
#[derive(Clone, Copy)]
pub struct CpuLimit(Duration);

impl CpuLimit {
    /// That of a look that begins now.
    pub fn of_a_look() -> Self {
        Self(clock::thread_cpu_time() + MOST_CPU)
    }

    /// # Errors
    /// If the time is used up.
    fn check(self) -> io::Result<()> {
        if clock::thread_cpu_time() < self.0 {
            return Ok(());
        }
        Err(io::Error::other("it takes too much CPU time"))
    }
}

/// The rest of what one look at a server may read, so that no server makes it long.
pub struct LookBudget {
    cpu: CpuLimit,
    descriptors: usize,
    /// The size of the files in `fdinfo`.
    bytes: usize,
    threads: usize,
    /// Whose sockets are read.
    networks: usize,
}

impl LookBudget {
    pub fn within(cpu: CpuLimit) -> Self {
        Self { cpu, descriptors: 8192, bytes: 2 << 20, threads: 4096, networks: 4 }
    }

    /// Fails if no CPU time is left for one more question to the kernel.
    pub fn question(&self) -> io::Result<()> {
        self.cpu.check()
    }

    pub fn list(&mut self, process: &OpenProcess) -> io::Result<Vec<u32>> {
        self.question()?;
        let all = process.descriptors(self.descriptors)?;
        self.descriptors -= all.len().min(self.descriptors);
        Ok(all)
    }

    pub fn threads(&mut self, process: &OpenProcess) -> io::Result<Vec<Pid>> {
        self.question()?;
        let all = process.threads(self.threads)?;
        self.threads -= all.len().min(self.threads);
        Ok(all)
    }

    pub fn network(&mut self) -> io::Result<()> {
        self.question()?;
        let left = self.networks.checked_sub(1);
        self.networks = left.ok_or_else(|| io::Error::other("it is in too many namespaces"))?;
        Ok(())
    }

    pub fn fdinfo(&mut self, process: &OpenProcess, fd: u32) -> io::Result<String> {
        let text = process.fdinfo(fd)?;
        let left = self.bytes.checked_sub(text.len());
        self.bytes = left.ok_or_else(|| io::Error::other("too much is open"))?;
        Ok(text)
    }
}

/// The rest of a time that is shared. Each share is as large a part of what is left as any other, so nobody can use up
/// the time of those that come later, and these have what the earlier ones leave.
pub struct Shares {
    end: Instant,
    /// How many are not given away.
    left: u32,
}

impl Shares {
    pub fn new(now: Instant, time: Duration, shares: usize) -> Self {
        Self { end: now + time, left: u32::try_from(shares).unwrap_or(u32::MAX) }
    }

    /// Gives away so many of them, from now on. Returns their end.
    pub fn next(&mut self, shares: usize) -> Instant {
        self.next_at(Instant::now(), shares)
    }

    fn next_at(&mut self, now: Instant, shares: usize) -> Instant {
        let shares = u32::try_from(shares).unwrap_or(u32::MAX).min(self.left);
        let each = self.end.saturating_duration_since(now).checked_div(self.left);
        self.left -= shares;
        now + each.unwrap_or_default() * shares
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_may_ask_no_more_when_its_cpu_time_is_used_up() {
        let budget = LookBudget::within(CpuLimit::of_a_look());
        assert!(budget.question().is_ok());
        std::thread::sleep(MOST_CPU);
        assert!(budget.question().is_ok(), "waiting costs nothing");
        let end = clock::thread_cpu_time() + MOST_CPU;
        while clock::thread_cpu_time() < end {}
        assert!(budget.question().is_err());
    }

    #[test]
    fn nobody_uses_the_share_of_another() {
        let (begin, ms) = (Instant::now(), Duration::from_millis);
        let mut shares = Shares::new(begin, ms(1000), 10);
        assert_eq!(shares.next_at(begin, 1), begin + ms(100));
        // It took its whole share, and a bit more.
        assert_eq!(shares.next_at(begin + ms(145), 5), begin + ms(145) + ms(95) * 5);
        // Those took nothing: the others have it.
        assert_eq!(shares.next_at(begin + ms(200), 2), begin + ms(600));
        assert_eq!(shares.next_at(begin + ms(200), 1), begin + ms(600));
        let late = begin + ms(1200);
        assert_eq!(shares.next_at(late, 1), late, "the time is over");
        assert_eq!(shares.next_at(begin, 1), begin, "none is left");
    }
}

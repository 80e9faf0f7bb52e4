//! The bounds of one look at a server.

use std::io;

use mcp_guard_core::id::Pid;

use crate::host::process::OpenProcess;

/// The rest of what one look at a server may read, so that no server makes it long.
pub struct LookBudget {
    descriptors: usize,
    /// The size of the files in `fdinfo`.
    bytes: usize,
    threads: usize,
    /// Whose sockets are read.
    networks: usize,
}

impl Default for LookBudget {
    fn default() -> Self {
        Self { descriptors: 8192, bytes: 2 << 20, threads: 4096, networks: 4 }
    }
}

impl LookBudget {
    pub fn list(&mut self, process: &OpenProcess) -> io::Result<Vec<u32>> {
        let all = process.descriptors(self.descriptors)?;
        self.descriptors -= all.len().min(self.descriptors);
        Ok(all)
    }

    pub fn threads(&mut self, process: &OpenProcess) -> io::Result<Vec<Pid>> {
        let all = process.threads(self.threads)?;
        self.threads -= all.len().min(self.threads);
        Ok(all)
    }

    pub fn network(&mut self) -> io::Result<()> {
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

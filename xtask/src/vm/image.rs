//! The images of guests: their kernels and programs, and where these come from.

/// The image of a guest.
#[derive(Debug, PartialEq, Eq)]
pub struct Image {
    pub name: &'static str,
    /// The Debian release of its kernel and programs.
    pub suite: &'static str,
    pub kind: Kind,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Kind {
    /// systemd, Docker and Podman on a disk.
    System {
        /// Packages in addition to [`PACKAGES`].
        more: &'static [&'static str],
        /// Words for the kernel's command line.
        append: &'static [&'static str],
        /// A word for one more boot, and the prefix of the tests that run in that boot.
        once_more: Option<(&'static str, &'static str)>,
    },
    /// A kernel, busybox and our own first process. It boots in seconds and has nothing that could hide
    /// what the kernel does.
    Kernel,
}

/// The packages of every system image. Debian's node is not one of them: containers have their own.
pub const PACKAGES: [&str; 17] = [
    "systemd",
    "systemd-sysv",
    "dbus",
    "udev",
    "kmod",
    "linux-image-cloud-amd64",
    "docker.io",
    "podman",
    "crun",
    "iptables",
    "procps",
    "iproute2",
    "busybox-static",
    // An independent kernel count, which is compared with that of mcp-guard.
    "bpftrace",
    "less",
    // They set the labels, and make the mistakes, that diagnose reads.
    "docker-compose",
    "podman-compose",
];

/// All images, in the order in which they are started: the slowest first.
pub const IMAGES: [Image; 6] = [
    Image {
        name: "trixie",
        suite: "trixie",
        // Since this release the client is a separate package.
        kind: Kind::System { more: &["docker-cli"], append: &[], once_more: None },
    },
    Image {
        name: "bookworm",
        suite: "bookworm",
        // Docker 20.10 does not start containers if AppArmor is on and its parser is missing.
        kind: Kind::System {
            more: &[],
            append: &["apparmor=0"],
            once_more: Some(("cgroup_disable=pids", "p020")),
        },
    },
    Image { name: "kernel-6.12", suite: "trixie", kind: Kind::Kernel },
    Image { name: "kernel-6.1", suite: "bookworm", kind: Kind::Kernel },
    // Debian's next release, with the newest kernel.
    Image { name: "kernel-forky", suite: "forky", kind: Kind::Kernel },
    // An unsupported kernel, to test that mcp-guard refuses it.
    Image { name: "kernel-5.10", suite: "bullseye", kind: Kind::Kernel },
];

impl Image {
    /// Returns whether its release still gets new kernels, so that its facts may change from day to day.
    pub fn moves(&self) -> bool {
        self.suite == "forky"
    }
}

/// Returns the image of that name. The error lists all names.
pub fn find(name: &str) -> Result<&'static Image, String> {
    let names = || IMAGES.iter().map(|image| image.name).collect::<Vec<_>>().join(", ");
    let found = IMAGES.iter().find(|image| image.name == name);
    found.ok_or_else(|| format!("there is no image {name:?}; the images are {}", names()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        assert_eq!(find("trixie").unwrap().suite, "trixie");
        assert!(find("sid").unwrap_err().contains("kernel-5.10"));
    }
}

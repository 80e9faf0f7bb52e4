//! The guests: which kernel, which programs, where from.

/// One guest.
#[derive(Debug, PartialEq, Eq)]
pub struct Image {
    pub name: &'static str,
    /// The Debian release that its kernel and programs come from.
    pub suite: &'static str,
    pub kind: Kind,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Kind {
    /// systemd, Docker and Podman on a disk.
    System {
        /// Packages beside [`PACKAGES`].
        more: &'static [&'static str],
        /// Words for the kernel's command line.
        append: &'static [&'static str],
        /// What else it boots with, once more, for the tests whose names begin like this.
        once_more: Option<(&'static str, &'static str)>,
    },
    /// A kernel, busybox and our own first process: seconds to boot, nothing that could hide what the
    /// kernel does.
    Kernel,
}

/// What every system image has. Without Debian's node: containers carry their own.
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
    // The independent kernel count that ours is compared with.
    "bpftrace",
    "less",
    // What leaves the labels and the mistakes that diagnose reads.
    "docker-compose",
    "podman-compose",
];

/// In the order in which they are begun: what takes longest comes first.
pub const IMAGES: [Image; 6] = [
    Image {
        name: "trixie",
        suite: "trixie",
        // From here on the client is a package of its own.
        kind: Kind::System { more: &["docker-cli"], append: &[], once_more: None },
    },
    Image {
        name: "bookworm",
        suite: "bookworm",
        // Docker 20.10 refuses to start containers where AppArmor is on and its parser is missing.
        kind: Kind::System {
            more: &[],
            append: &["apparmor=0"],
            once_more: Some(("cgroup_disable=pids", "p020")),
        },
    },
    Image { name: "kernel-6.12", suite: "trixie", kind: Kind::Kernel },
    Image { name: "kernel-6.1", suite: "bookworm", kind: Kind::Kernel },
    // Debian's next release: the newest kernel there is.
    Image { name: "kernel-forky", suite: "forky", kind: Kind::Kernel },
    // Older than what is supported: shows the refusal.
    Image { name: "kernel-5.10", suite: "bullseye", kind: Kind::Kernel },
];

impl Image {
    /// Whether its release gets new kernels, so that what it found out yesterday may be another thing today.
    pub fn moves(&self) -> bool {
        self.suite == "forky"
    }
}

/// The image of that name; the error lists those there are.
pub fn find(name: &str) -> Result<&'static Image, String> {
    let names = || IMAGES.iter().map(|image| image.name).collect::<Vec<_>>().join(", ");
    let found = IMAGES.iter().find(|image| image.name == name);
    found.ok_or_else(|| format!("there is no image {name:?}; there are {}", names()))
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

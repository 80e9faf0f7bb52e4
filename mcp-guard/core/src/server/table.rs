//! The known programs: launchers, container clients, interpreters, wrappers, and packages that only wrap.
//!
//! This is the grammar as data. The policy's `[[launcher]]` entries come before it.

use super::{lists, spec::Spec};

/// The use that a program makes of its command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Runs {
    /// Fetches a package and runs it: rule 1. `npm` reads its options behind the package, too.
    Package(Spec),
    /// Runs a container of an image: rule 2.
    Image,
    /// Runs a file, or what an option names, by interpreting it: rule 3.
    Script(Spec),
    /// Interprets its word if that looks like a file. Otherwise the word is a command of the program itself.
    FileOnly(Spec),
    /// Runs a command line in an environment that it prepares, and waits for it.
    Command,
    /// Becomes the program of the command line.
    Becomes,
    /// `env`: the same, behind assignments.
    Env,
    /// Runs a script of a package or a target of a makefile by its name.
    Target,
    /// A package that wraps a server which is named by its first word.
    Wraps(Wrapped),
    /// Runs between a launcher and the program that it starts.
    Shell,
    /// Starts another program and adds nothing to its name.
    Wrapper,
}

impl Runs {
    /// Returns whether every such program runs what it names as a child.
    pub fn launches(self) -> bool {
        match self {
            Self::Package(_) | Self::Command | Self::Target => true,
            Self::Image
            | Self::Script(_)
            | Self::FileOnly(_)
            | Self::Becomes
            | Self::Env
            | Self::Wraps(_)
            | Self::Shell
            | Self::Wrapper => false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wrapped {
    /// A URL. Any other word is a command, which is a server of its own.
    Url,
    /// Any word.
    Word,
    /// Only what an option names.
    Option,
}

/// The options of a program. Each text is a list of words; see [`super::lists`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Syntax {
    pub values: &'static [&'static str],
    pub flags: &'static [&'static str],
    /// Take two words.
    pub pairs: &'static str,
    /// Take the next word if it is a number.
    pub numbers: &'static str,
    /// Their value names what is run. It ends the options of an interpreter.
    pub names: &'static str,
    /// Their value is the directory that what is run belongs to. It becomes part of the identity.
    pub places: &'static str,
    /// The first word is a module.
    pub module: &'static str,
    /// The program is text in the command line or on standard input.
    pub code: &'static str,
    /// Nothing is run.
    pub information: &'static str,
    /// `-it` is `-i -t`, and `-p3.12` is `-p 3.12`.
    pub clusters: bool,
    /// `true` or `false` may follow a flag, as npm allows.
    pub truths: bool,
}

/// Programs with the same options. A program is a list of names, the first of which is the one that identities
/// show, and the words that must follow it.
pub(super) struct Group {
    /// Options before the last of the words that must follow, if they are others.
    pub before: Option<Syntax>,
    pub options: Syntax,
    pub programs: &'static [(&'static str, &'static str, Runs)],
    /// The program may be a file that an interpreter runs. For others, such a file is a script that happens to
    /// have the name.
    pub scripts: bool,
    /// The program runs its script as a child: by another interpreter, or after it was compiled.
    pub launches: bool,
}

const HELP: &str = "-h --help -v --version";

const NONE: Syntax = Syntax {
    values: &[],
    flags: &[],
    pairs: "",
    numbers: "",
    names: "",
    places: "",
    module: "",
    code: "",
    information: HELP,
    clusters: false,
    truths: false,
};

const NPM: Syntax = Syntax {
    // `npx -c COMMAND` has its package in `-p`, which may follow.
    values: &[lists::NPM_VALUES, "-c --call"],
    flags: &[lists::NPM_FLAGS, "-n"],
    names: "--package -p",
    places: "-C --prefix",
    information: "-h -H -? --help --usage -v --version --versions",
    truths: true,
    ..NONE
};
/// `-n` was `--node-arg` in the npx of npm 6, and is `--no-yes` in npm. So the word behind it may be its value.
const NPX: Syntax = Syntax { flags: &[lists::NPM_FLAGS], ..NPM };
const PNPM: Syntax = Syntax {
    values: &[lists::PNPM_VALUES],
    flags: &[lists::PNPM_FLAGS],
    names: "--package",
    places: "-C --dir",
    code: "-c --shell-mode",
    ..NONE
};
const YARN: Syntax = Syntax {
    values: &[lists::YARN_VALUES],
    flags: &[lists::YARN_FLAGS],
    names: "-p --package",
    places: "--cwd",
    ..NONE
};
const BUN: Syntax = Syntax {
    values: &[lists::BUN_VALUES],
    flags: &[lists::BUN_FLAGS],
    places: "--cwd",
    code: "-e --eval -p --print",
    information: "-h --help -v --version --revision",
    ..NONE
};
const BUNX: Syntax = Syntax { names: "--package -p", code: "-e --eval --print", ..BUN };
const UV: Syntax = Syntax {
    values: &[lists::UV_TOOL_VALUES],
    flags: &[lists::UV_TOOL_FLAGS],
    names: "--from",
    places: "--directory --project",
    information: "-h --help -V --version",
    clusters: true,
    ..NONE
};
const UV_RUN: Syntax = Syntax {
    values: &[lists::UV_RUN_VALUES],
    flags: &[lists::UV_RUN_FLAGS, "-s --script"],
    names: "",
    module: "-m --module",
    ..UV
};
const PIPX: Syntax = Syntax {
    values: &[lists::PIPX_VALUES],
    flags: &[lists::PIPX_FLAGS],
    names: "--spec",
    information: "-h --help --version",
    clusters: true,
    ..NONE
};
const ENGINE: Syntax = Syntax {
    values: &[lists::ENGINE_VALUES],
    flags: &[lists::ENGINE_FLAGS],
    clusters: true,
    information: "-v --version --help",
    ..NONE
};
const CONTAINER_RUN: Syntax = Syntax {
    values: &[lists::DOCKER_RUN_VALUES, lists::PODMAN_RUN_VALUES],
    flags: &[lists::DOCKER_RUN_FLAGS, lists::PODMAN_RUN_FLAGS],
    clusters: true,
    information: "--help",
    ..NONE
};
const PYTHON: Syntax = Syntax {
    values: &[lists::PYTHON_VALUES],
    flags: &[lists::PYTHON_FLAGS],
    names: "-m",
    code: "-c",
    information: "-h -? -V --help --version --help-env --help-xoptions --help-all",
    clusters: true,
    ..NONE
};
const NODE: Syntax = Syntax {
    values: &[lists::NODE_VALUES],
    flags: &[lists::NODE_FLAGS],
    code: "-e --eval -p --print -pe --run",
    information: "-h --help -v --version --v8-options --completion-bash",
    ..NONE
};
const TSX: Syntax = Syntax {
    values: &[lists::NODE_VALUES, lists::TSX_VALUES],
    flags: &[lists::NODE_FLAGS, lists::TSX_FLAGS],
    ..NODE
};
const TS_NODE: Syntax = Syntax {
    values: &[lists::TS_NODE_VALUES],
    flags: &[lists::TS_NODE_FLAGS],
    code: "-e --eval -p --print -pe",
    information: "-h --help -v -vv -vvv --version --showConfig --show-config",
    ..NONE
};
const DENO: Syntax = Syntax {
    values: &[lists::DENO_VALUES],
    flags: &[lists::DENO_FLAGS],
    information: "-h --help -V --version",
    clusters: true,
    ..NONE
};
const JAVA: Syntax = Syntax {
    values: &[lists::JAVA_VALUES],
    flags: &[lists::JAVA_FLAGS],
    names: "-jar -m --module",
    information: "-? -h -help --help --help-extra -version --version --list-modules",
    ..NONE
};
const JBANG: Syntax = Syntax {
    values: &[lists::JBANG_VALUES],
    flags: &[lists::JBANG_FLAGS],
    code: "-c --code",
    information: "-h --help -V --version",
    ..NONE
};
const DOTNET_TOOL: Syntax = Syntax {
    values: &[lists::DOTNET_TOOL_VALUES],
    flags: &[lists::DOTNET_TOOL_FLAGS],
    information: "-? -h --help",
    ..NONE
};
const DOTNET_RUN: Syntax = Syntax {
    values: &[lists::DOTNET_RUN_VALUES],
    flags: &[lists::DOTNET_RUN_FLAGS],
    names: "--project --file",
    information: "-? -h --help",
    ..NONE
};
const DOTNET_HOST: Syntax = Syntax {
    values: &[lists::DOTNET_HOST_VALUES],
    information: "-? -h --help --info --version --list-sdks --list-runtimes",
    ..NONE
};
const MAKE: Syntax = Syntax {
    values: &[lists::MAKE_VALUES],
    flags: &[lists::MAKE_FLAGS],
    numbers: "-j -l",
    places: "-C --directory",
    clusters: true,
    ..NONE
};
const GO: Syntax = Syntax { values: &[lists::GO_VALUES], flags: &[lists::GO_FLAGS], ..NONE };
const ENV: Syntax = Syntax {
    values: &[lists::ENV_VALUES],
    flags: &[lists::ENV_FLAGS],
    information: "--help --version",
    ..NONE
};
const RUBY: Syntax = Syntax {
    values: &[lists::RUBY_VALUES],
    flags: &[lists::RUBY_FLAGS],
    code: "-e",
    clusters: true,
    ..NONE
};
const PHP: Syntax = Syntax {
    values: &[lists::PHP_VALUES],
    flags: &[lists::PHP_FLAGS],
    names: "-f --file",
    code: "-a -r --run -S -B -R -E",
    clusters: true,
    ..NONE
};
const PERL: Syntax = Syntax { flags: &[lists::PERL_FLAGS], code: "-e -E", ..NONE };
const PROJECT_RUN: Syntax = Syntax {
    values: &[lists::PROJECT_RUN_VALUES],
    flags: &[lists::PROJECT_RUN_FLAGS],
    places: "-C --directory -P --project --cwd",
    ..NONE
};
const FASTMCP: Syntax =
    Syntax { values: &[lists::FASTMCP_VALUES], flags: &[lists::FASTMCP_FLAGS], ..NONE };
const MCP_REMOTE: Syntax =
    Syntax { values: &[lists::MCP_REMOTE_VALUES], flags: &[lists::MCP_REMOTE_FLAGS], ..NONE };
const MCP_PROXY: Syntax = Syntax {
    values: &[lists::MCP_PROXY_VALUES],
    flags: &[lists::MCP_PROXY_FLAGS],
    pairs: lists::MCP_PROXY_PAIRS,
    ..NONE
};
const SUPERGATEWAY: Syntax = Syntax {
    values: &[lists::SUPERGATEWAY_VALUES],
    flags: &[lists::SUPERGATEWAY_FLAGS],
    names: "--sse --streamableHttp",
    ..NONE
};
const SMITHERY: Syntax =
    Syntax { values: &[lists::SMITHERY_VALUES], flags: &[lists::SMITHERY_FLAGS], ..NONE };

const SCRIPTS: Group =
    Group { before: None, options: NONE, programs: &[], scripts: true, launches: false };
const LAUNCHING: Group = Group { launches: true, ..SCRIPTS };
const BINARIES: Group = Group { scripts: false, ..SCRIPTS };

pub(super) const TABLE: &[Group] = &[
    Group {
        options: NPM,
        programs: &[
            ("npm", "exec", Runs::Package(Spec::Npm)),
            ("npm", "x", Runs::Package(Spec::Npm)),
            ("npm", "run", Runs::Target),
            ("npm", "run-script", Runs::Target),
        ],
        ..SCRIPTS
    },
    Group { options: NPX, programs: &[("npx", "", Runs::Package(Spec::Npm))], ..SCRIPTS },
    Group {
        options: PNPM,
        programs: &[
            ("pnpm", "dlx", Runs::Package(Spec::Npm)),
            ("pnpx", "", Runs::Package(Spec::Npm)),
            ("pnpm", "exec", Runs::Command),
            ("pnpm", "run", Runs::Target),
        ],
        ..SCRIPTS
    },
    Group {
        options: YARN,
        programs: &[
            ("yarn", "dlx", Runs::Package(Spec::Npm)),
            ("yarn", "exec", Runs::Command),
            ("yarn", "run", Runs::Target),
        ],
        ..SCRIPTS
    },
    Group {
        options: BUNX,
        programs: &[("bunx", "", Runs::Package(Spec::Npm)), ("bun", "x", Runs::Package(Spec::Npm))],
        ..SCRIPTS
    },
    Group {
        options: BUN,
        programs: &[
            ("bun", "run", Runs::FileOnly(Spec::File)),
            ("bun", "run", Runs::Target),
            ("bun", "", Runs::FileOnly(Spec::File)),
        ],
        ..BINARIES
    },
    Group {
        options: UV,
        programs: &[
            ("uvx", "", Runs::Package(Spec::Python)),
            ("uv", "tool run", Runs::Package(Spec::Python)),
            // `uvx` execs this internal spelling of `uv tool run`.
            ("uv", "tool uvx", Runs::Package(Spec::Python)),
        ],
        ..SCRIPTS
    },
    Group {
        before: Some(UV),
        options: UV_RUN,
        programs: &[("uv", "run", Runs::Command)],
        ..SCRIPTS
    },
    Group { options: PIPX, programs: &[("pipx", "run", Runs::Package(Spec::Python))], ..SCRIPTS },
    Group { options: NONE, programs: &[("corepack", "", Runs::Becomes)], ..SCRIPTS },
    Group {
        before: Some(ENGINE),
        options: CONTAINER_RUN,
        programs: &[
            ("docker", "run", Runs::Image),
            ("docker", "container run", Runs::Image),
            ("podman", "run", Runs::Image),
            ("podman", "container run", Runs::Image),
            ("nerdctl", "run", Runs::Image),
        ],
        ..BINARIES
    },
    Group { options: NODE, programs: &[("node nodejs", "", Runs::Script(Spec::File))], ..BINARIES },
    Group { options: PYTHON, programs: &[("python", "", Runs::Script(Spec::File))], ..BINARIES },
    Group {
        options: DENO,
        programs: &[
            ("deno", "run", Runs::Script(Spec::Deno)),
            ("deno", "serve", Runs::Script(Spec::Deno)),
            ("deno", "x", Runs::Script(Spec::Npm)),
            ("deno", "task", Runs::Target),
            ("deno", "", Runs::FileOnly(Spec::Deno)),
        ],
        ..BINARIES
    },
    Group { options: JAVA, programs: &[("java", "", Runs::Script(Spec::File))], ..BINARIES },
    Group {
        options: JBANG,
        programs: &[
            ("jbang", "run", Runs::Script(Spec::Jbang)),
            ("jbang", "", Runs::Script(Spec::Jbang)),
        ],
        ..LAUNCHING
    },
    Group {
        options: DOTNET_TOOL,
        programs: &[
            ("dnx", "", Runs::Script(Spec::Versioned)),
            ("dotnet", "dnx", Runs::Script(Spec::Versioned)),
            ("dotnet", "tool exec", Runs::Script(Spec::Versioned)),
            ("dotnet", "tool run", Runs::Script(Spec::Versioned)),
        ],
        ..LAUNCHING
    },
    Group {
        options: DOTNET_RUN,
        programs: &[("dotnet", "run", Runs::Script(Spec::File))],
        scripts: false,
        ..LAUNCHING
    },
    Group {
        options: DOTNET_HOST,
        programs: &[
            ("dotnet", "exec", Runs::Script(Spec::File)),
            ("dotnet", "", Runs::FileOnly(Spec::File)),
        ],
        ..BINARIES
    },
    Group { options: MAKE, programs: &[("make gmake", "", Runs::Target)], ..BINARIES },
    Group {
        options: GO,
        programs: &[("go", "run", Runs::Script(Spec::Versioned))],
        scripts: false,
        ..LAUNCHING
    },
    Group {
        options: TSX,
        programs: &[
            ("tsx", "watch", Runs::Script(Spec::File)),
            ("tsx", "", Runs::Script(Spec::File)),
        ],
        ..LAUNCHING
    },
    Group {
        options: TS_NODE,
        programs: &[("ts-node ts-node-esm", "", Runs::Script(Spec::File))],
        ..SCRIPTS
    },
    Group {
        options: FASTMCP,
        programs: &[
            ("fastmcp", "run", Runs::Script(Spec::File)),
            ("fastmcp", "dev", Runs::Script(Spec::File)),
            ("mcp", "run", Runs::Script(Spec::File)),
            ("mcp", "dev", Runs::Script(Spec::File)),
        ],
        ..SCRIPTS
    },
    Group {
        options: MCP_REMOTE,
        programs: &[("mcp-remote", "", Runs::Wraps(Wrapped::Url))],
        ..SCRIPTS
    },
    Group {
        options: MCP_PROXY,
        programs: &[("mcp-proxy mcp_proxy", "", Runs::Wraps(Wrapped::Url))],
        ..SCRIPTS
    },
    Group {
        options: SUPERGATEWAY,
        programs: &[("supergateway", "", Runs::Wraps(Wrapped::Option))],
        ..SCRIPTS
    },
    Group {
        options: SMITHERY,
        programs: &[("@smithery/cli smithery", "run", Runs::Wraps(Wrapped::Word))],
        ..SCRIPTS
    },
    Group { options: RUBY, programs: &[("ruby", "", Runs::Script(Spec::File))], ..BINARIES },
    Group { options: PHP, programs: &[("php", "", Runs::Script(Spec::File))], ..BINARIES },
    Group { options: PERL, programs: &[("perl", "", Runs::Script(Spec::File))], ..BINARIES },
    Group {
        options: PROJECT_RUN,
        programs: &[
            ("poetry", "run", Runs::Command),
            ("pdm", "run", Runs::Command),
            ("pipenv", "run", Runs::Command),
            ("conda", "run", Runs::Command),
        ],
        ..SCRIPTS
    },
    Group { options: ENV, programs: &[("env", "", Runs::Env)], ..BINARIES },
    Group { programs: &[("sh bash dash ash zsh busybox", "", Runs::Shell)], ..BINARIES },
    Group {
        programs: &[
            (
                "timeout nice nohup setsid stdbuf ionice chrt taskset time tini dumb-init catatonit \
                 docker-init gosu su-exec sudo doas su runuser setpriv chroot unshare nsenter bwrap \
                 firejail xvfb-run dbus-run-session flock strace ltrace systemd-run script direnv \
                 dotenvx",
                "",
                Runs::Wrapper,
            ),
            ("op", "run", Runs::Wrapper),
            ("doppler", "run", Runs::Wrapper),
            ("infisical", "run", Runs::Wrapper),
        ],
        ..BINARIES
    },
];

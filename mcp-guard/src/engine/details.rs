//! Reads everything that a diagnosis asks an engine about one container.

use jiff::Timestamp;
use mcp_guard_core::{
    container::is_container_id,
    diagnose::facts::{self, CgroupDriver, Compose, ComposeTool, Source, Unreadable},
    id::Pid,
};
use serde::Deserialize;
use serde_json::Value;

use super::{
    container::{Details, Listed, MAX_FILES, MAX_NAME, MAX_TEXT, shown, text},
    error::Error,
    flavour::Flavour,
    raw::container,
    socket::Socket,
};

/// Most `docker exec` calls of a container that are asked about.
const MAX_EXECS: usize = 4096;
/// Most items read of any other list, such as binds or mounts.
const MAX_ITEMS: usize = 4096;
/// Most bytes of a path, including its end, that the kernel accepts (`PATH_MAX` in `limits.h`).
const MAX_PATH: usize = 4096;

impl Socket {
    pub(super) async fn lines(&self) -> Result<Vec<Listed>, Error> {
        let found: Vec<ListLine> = self.api.list("/containers/json?all=true").await?;
        Ok(found.into_iter().filter_map(listed).collect())
    }

    pub(super) async fn all_paused(&self) -> Result<Vec<String>, Error> {
        // `{"status":["paused"]}`
        let filters = "%7B%22status%22%3A%5B%22paused%22%5D%7D";
        let found: Vec<ListLine> =
            self.api.list(&format!("/containers/json?filters={filters}")).await?;
        let paused = found.into_iter().filter(|line| line.state.as_deref() == Some("paused"));
        Ok(paused.map(|line| line.id).collect())
    }

    pub(super) async fn all_of(&self, id: &str) -> Result<Option<Details>, Error> {
        let container = container(id)?;
        let flavour = self.flavour().await?;
        let inspect = format!("{container}/json");
        let (found, cgroups) =
            tokio::join!(self.api.get(&inspect), flavour.cgroups(&self.api, &container));
        let Some(mut details) = found?.map(|found| details(id, &found)) else { return Ok(None) };
        match cgroups {
            Ok(Some(cgroups)) => details.container.cgroups = cgroups,
            Ok(None) => {}
            Err(error) => {
                details.unread = Some(Unreadable::new(Source::PodmanCgroups, error));
            }
        }
        Ok(Some(details))
    }

    pub(super) async fn running_execs(&self, details: &Details) -> (Vec<Pid>, Option<Unreadable>) {
        let mut running = Vec::new();
        let ask = async {
            for exec in details.execs.iter().filter(|exec| is_container_id(exec)) {
                let found = self.api.get(&format!("/exec/{exec}/json")).await?;
                let found = found.filter(|exec| exec["Running"] == true);
                running.extend(found.and_then(|exec| process(&exec["Pid"])));
            }
            Ok::<_, Error>(())
        };
        let patience = self.api.timeout();
        let why = match tokio::time::timeout(patience, ask).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("the engine did not describe all of them within {patience:?}")),
        };
        (running, why.map(|why| Unreadable::new(Source::Execs, why)))
    }

    pub(super) async fn itself(&self) -> Result<facts::EngineFacts, Error> {
        let (info, version) = tokio::join!(self.api.get("/info"), self.api.get("/version"));
        let version = version?.unwrap_or_default();
        let flavour = self.remember(&version);
        Ok(describe(self.api.path(), flavour, &info?.unwrap_or_default(), &version))
    }
}

/// The fields that are read of one container in an engine's list.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ListLine {
    id: String,
    names: Option<Vec<String>>,
    image: Option<String>,
    state: Option<String>,
    mounts: Option<Vec<MountLine>>,
    labels: Option<Labels>,
}

#[derive(Deserialize)]
struct MountLine {
    #[serde(rename = "Source")]
    source: Option<String>,
    #[serde(rename = "RW")]
    writable: Option<bool>,
}

#[derive(Deserialize)]
struct Labels {
    #[serde(rename = "com.docker.compose.project")]
    project: Option<String>,
}

pub(super) fn listed(found: ListLine) -> Option<Listed> {
    let mounts = found.mounts.unwrap_or_default().into_iter();
    let writable = mounts.filter(|mount| mount.writable != Some(false));
    let name = found.names.unwrap_or_default().into_iter().next().unwrap_or_default();
    is_container_id(&found.id).then_some(Listed {
        id: found.id,
        name: shown(name.trim_start_matches('/'), MAX_NAME),
        image: shown(&found.image.unwrap_or_default(), MAX_TEXT),
        project: found.labels.and_then(|labels| labels.project),
        volumes: writable.filter_map(|mount| mount.source).collect(),
        runs: found.state.is_none_or(|state| matches!(state.as_str(), "running" | "paused")),
    })
}

pub(super) fn describe(
    socket: &str,
    flavour: &dyn Flavour,
    info: &Value,
    version: &Value,
) -> facts::EngineFacts {
    let options = strings(&info["SecurityOptions"]);
    facts::EngineFacts {
        kind: flavour.kind(),
        version: text(&version["Version"]),
        api_version: text(&version["ApiVersion"]),
        cgroup_driver: CgroupDriver::deserialize(&info["CgroupDriver"]).unwrap_or_default(),
        pids_limit: info["PidsLimit"].as_bool(),
        rootless: options.iter().any(|option| option.contains("name=rootless")),
        kernel: text(&info["KernelVersion"]),
        operating_system: text(&info["OperatingSystem"]),
        socket: socket.to_owned(),
        own_tasks_max: None,
    }
}

pub(super) fn details(id: &str, found: &Value) -> Details {
    let (host, config, state) = (&found["HostConfig"], &found["Config"], &found["State"]);
    let label = |name: &str| config["Labels"][name].as_str().map(str::to_owned);
    // A read-only bind of the socket gives as much access as a writable one.
    let binds = [strings(&host["Binds"]), mounts(&found["Mounts"])].concat();
    let container = facts::ContainerFacts {
        id: id.to_owned(),
        name: text(&found["Name"]).trim_start_matches('/').to_owned(),
        image: text(&config["Image"]),
        created: found["Created"].as_str().and_then(seconds),
        init: process(&state["Pid"]).unwrap_or_default(),
        pids_limit: host["PidsLimit"].as_i64(),
        cgroup_parent: text(&host["CgroupParent"]),
        cgroupns_mode: text(&host["CgroupnsMode"]).into(),
        cgroups: text(&host["Cgroups"]).into(),
        pid_mode: text(&host["PidMode"]).into(),
        privileged: host["Privileged"] == true,
        cap_add: strings(&host["CapAdd"]),
        runtime: text(&host["Runtime"]),
        init_process: host["Init"] == true,
        binds_docker_socket: binds.iter().any(|bind| bind.contains("docker.sock")),
        binds_cgroupfs: binds.iter().any(|bind| bind.starts_with("/sys/fs/cgroup")),
        nproc_ulimit: nproc(&host["Ulimits"]),
        health: state["Health"]["Status"].as_str().map(|health| shown(health, MAX_NAME)),
        swarm_service: label("com.docker.swarm.service.id").map(|id| shown(&id, MAX_TEXT)),
        memory: facts::Memory {
            max: host["Memory"].as_u64().filter(|bytes| *bytes > 0),
            ..facts::Memory::default()
        },
        ..facts::ContainerFacts::default()
    };
    Details {
        container,
        compose: compose(label),
        working_dir: label("com.docker.compose.project.working_dir")
            .filter(|folder| folder.len() < MAX_PATH)
            .unwrap_or_default(),
        environment_file: label("com.docker.compose.project.environment_file"),
        unread: None,
        execs: strings(&found["ExecIDs"]).into_iter().take(MAX_EXECS).collect(),
    }
}

/// Reads the labels that compose sets (docker/compose `pkg/api/labels.go`).
fn compose(label: impl Fn(&str) -> Option<String>) -> Option<Compose> {
    let podman = label("io.podman.compose.version");
    let label = |name: &str| label(&format!("com.docker.compose.{name}"));
    let tool = if podman.is_some() { ComposeTool::PodmanCompose } else { ComposeTool::Docker };
    let files = label("project.config_files").unwrap_or_default();
    Some(Compose {
        project: label("project")?,
        service: label("service")?,
        tool,
        version: podman.or_else(|| label("version")),
        files: files
            .split(',')
            .filter(|file| !file.is_empty())
            // One extra shows that there are too many.
            .take(MAX_FILES + 1)
            .map(str::to_owned)
            .collect(),
        ..Compose::default()
    })
}

fn mounts(value: &Value) -> Vec<String> {
    let all = value.as_array().into_iter().flatten().take(MAX_ITEMS);
    all.filter(|mount| mount["RW"] != false).map(|mount| text(&mount["Source"])).collect()
}

fn nproc(ulimits: &Value) -> Option<i64> {
    let one = ulimits
        .as_array()?
        .iter()
        .find(|one| one["Name"] == "nproc" || one["Name"] == "RLIMIT_NPROC");
    one?["Hard"].as_i64()
}

fn process(value: &Value) -> Option<Pid> {
    value.as_u64().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0).map(Pid)
}

fn strings(value: &Value) -> Vec<String> {
    let all = value.as_array().into_iter().flatten().take(MAX_ITEMS);
    all.map(text).collect()
}

/// Parses `2026-11-23T04:05:06.789Z` to seconds since 1970. Engines write UTC or an offset.
fn seconds(text: &str) -> Option<u64> {
    u64::try_from(text.parse::<Timestamp>().ok()?.as_second()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn times_of_both_engines_are_parsed() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2000-02-29T12:00:00.123456789Z", Some(951_825_600)),
            ("2026-11-23T04:05:06.5+01:00", Some(1_795_403_106)),
            ("2026-11-23", None),
            ("nonsense", None),
            ("2026-11-23T04:05:06", None),
        ] {
            assert_eq!(seconds(text), expected, "{text}");
        }
    }

    #[test]
    fn null_and_zero_are_different_limits() {
        let limit = |value: Value| {
            details("x", &json!({ "HostConfig": { "PidsLimit": value } })).container.pids_limit
        };
        assert_eq!(
            [limit(Value::Null), limit(json!(0)), limit(json!(-1))],
            [None, Some(0), Some(-1)]
        );
    }

    #[test]
    fn malformed_answers_of_an_engine_are_tolerated() {
        for value in
            [json!(null), json!([]), json!({ "HostConfig": 7, "State": "x", "Config": [] })]
        {
            let found = details("x", &value);
            assert_eq!((found.container.init, found.compose), (Pid(0), None));
        }
        let labels = json!({ "Config": { "Labels": {
            "com.docker.compose.project": "p", "com.docker.compose.service": "web",
            "com.docker.compose.project.config_files": "/srv/a.yml,,/srv/b.yml",
        } } });
        assert_eq!(details("x", &labels).compose.unwrap().files, ["/srv/a.yml", "/srv/b.yml"]);
    }

    #[test]
    fn file_names_from_labels_are_limited_in_number_and_length() {
        let labels = json!({ "Config": { "Labels": {
            "com.docker.compose.project": "p", "com.docker.compose.service": "web",
            "com.docker.compose.project.config_files": "a.yml,".repeat(100_000),
            "com.docker.compose.project.working_dir": "/x".repeat(100_000),
        } } });
        let found = details("x", &labels);
        assert_eq!(found.compose.unwrap().files.len(), MAX_FILES + 1);
        assert_eq!(found.working_dir, "");
    }

    #[test]
    fn the_relevant_labels_are_found_among_thousands() {
        let mut labels: serde_json::Map<_, _> =
            (0..5000).map(|n| (format!("a{n}"), json!("x"))).collect();
        labels.insert("com.docker.compose.project".to_owned(), json!("p"));
        labels.insert("com.docker.compose.service".to_owned(), json!("web"));
        labels.insert("com.docker.swarm.service.id".to_owned(), json!("a\nb"));
        let found = details("x", &json!({ "Config": { "Labels": labels } }));
        assert_eq!(found.compose.unwrap().service, "web");
        assert_eq!(found.container.swarm_service.as_deref(), Some("a\\nb"));
    }

    #[test]
    fn a_list_entry_is_read_despite_unknown_fields() {
        let id = "a".repeat(64);
        let line = json!({ "Id": id, "Names": ["/web"], "State": "exited", "Other": [{}], "Mounts": [
            { "Source": "/srv/a\\b", "RW": true }, { "Source": "/etc", "RW": false }, { "RW": true },
        ], "Labels": { "com.docker.compose.project": "p", "x": "y" } });
        let found = listed(serde_json::from_value(line).unwrap()).unwrap();
        assert_eq!((found.name.as_str(), found.project.as_deref()), ("web", Some("p")));
        assert_eq!((found.volumes, found.runs), (vec![r"/srv/a\b".to_owned()], false));
        for nothing in [json!({ "Id": id }), json!({ "Id": id, "Mounts": null, "Labels": null })] {
            let found = listed(serde_json::from_value(nothing).unwrap()).unwrap();
            assert!(found.runs && found.volumes.is_empty());
        }
        assert!(listed(serde_json::from_value(json!({ "Id": "../x" })).unwrap()).is_none());
    }
}

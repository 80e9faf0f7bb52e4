//! Everything an engine knows of one container that a diagnosis asks for.

use std::collections::BTreeMap;

use jiff::Timestamp;
use mcp_guard_core::{
    container::is_container_id,
    diagnose::facts::{self, Compose},
    escape::escape,
};
use serde_json::Value;

use super::{Engine, Error, MAX_LABELS, MAX_NAME, raw};

/// Running `docker exec` calls asked about.
const MAX_EXECS: usize = 4096;
/// Characters of any other text.
const MAX_TEXT: usize = 1024;
/// Files of one compose project.
const MAX_FILES: usize = 32;

/// One container, as its engine describes it.
#[derive(Clone, Debug, Default)]
pub struct Details {
    pub container: facts::Container,
    /// What its labels say; the files are not read here.
    pub compose: Option<Compose>,
    /// `com.docker.compose.project.working_dir`.
    pub working_dir: String,
    /// `com.docker.compose.project.environment_file`.
    pub environment_file: Option<String>,
}

/// One line of the list of containers.
#[derive(Clone, Debug, Default)]
pub struct Listed {
    pub id: String,
    pub name: String,
    pub image: String,
    /// Of compose.
    pub project: Option<String>,
    /// Folders of the host that it can write to.
    pub volumes: Vec<String>,
    /// It has processes; a stopped one may still have left files.
    pub runs: bool,
}

impl Engine {
    /// Every container, also those that are stopped.
    ///
    /// # Errors
    /// The engine does not answer.
    pub async fn containers(&self) -> Result<Vec<Listed>, Error> {
        let found = raw::get(&self.socket, "/containers/json?all=true").await?.unwrap_or_default();
        Ok(found.as_array().into_iter().flatten().filter_map(listed).collect())
    }

    /// None where it is gone.
    ///
    /// # Errors
    /// The engine does not answer, or not in its own language.
    pub async fn details(&self, id: &str) -> Result<Option<Details>, Error> {
        if !is_container_id(id) {
            return Err(Error::BadId(id.to_owned()));
        }
        let found = raw::get(&self.socket, &format!("/containers/{id}/json")).await?;
        let Some(found) = found else { return Ok(None) };
        let mut details = details(id, &found);
        for exec in strings(&found["ExecIDs"]).into_iter().take(MAX_EXECS) {
            if is_container_id(&exec)
                && let Ok(Some(exec)) = raw::get(&self.socket, &format!("/exec/{exec}/json")).await
                && exec["Running"] == true
            {
                details.container.execs.extend(process(&exec["Pid"]));
            }
        }
        Ok(Some(details))
    }

    /// `HostConfig.Cgroups` ("disabled", "split", ...), which Podman says in its own API alone.
    ///
    /// # Errors
    /// Podman does not answer.
    pub async fn cgroups_of_podman(&self, id: &str) -> Result<Option<String>, Error> {
        if !is_container_id(id) {
            return Err(Error::BadId(id.to_owned()));
        }
        let found = raw::get_of_podman(&self.socket, &format!("/containers/{id}/json")).await?;
        Ok(found.map(|found| text(&found["HostConfig"]["Cgroups"])))
    }

    /// The engine itself.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn describe(&self) -> Result<facts::Engine, Error> {
        let (info, version) =
            tokio::join!(raw::get(&self.socket, "/info"), raw::get(&self.socket, "/version"));
        Ok(describe(&self.socket, &info?.unwrap_or_default(), &version?.unwrap_or_default()))
    }
}

fn listed(found: &Value) -> Option<Listed> {
    let id = found["Id"].as_str().filter(|id| is_container_id(id))?;
    let labels = labels(&found["Labels"]);
    Some(Listed {
        id: id.to_owned(),
        name: strings(&found["Names"])
            .first()
            .map_or("", |name| name.trim_start_matches('/'))
            .to_owned(),
        image: text(&found["Image"]),
        project: labels.get("com.docker.compose.project").cloned(),
        volumes: mounts(&found["Mounts"]),
        runs: found["State"].as_str().is_none_or(|state| matches!(state, "running" | "paused")),
    })
}

fn describe(socket: &str, info: &Value, version: &Value) -> facts::Engine {
    let components = version["Components"].as_array();
    let podman = components.into_iter().flatten().any(|one| one["Name"] == "Podman Engine");
    let options = strings(&info["SecurityOptions"]);
    facts::Engine {
        kind: if podman { "podman" } else { "docker" }.to_owned(),
        version: text(&version["Version"]),
        api_version: text(&version["ApiVersion"]),
        cgroup_driver: text(&info["CgroupDriver"]),
        pids_limit: info["PidsLimit"].as_bool(),
        rootless: options.iter().any(|option| option.contains("name=rootless")),
        kernel: text(&info["KernelVersion"]),
        operating_system: text(&info["OperatingSystem"]),
        socket: socket.to_owned(),
        own_tasks_max: None,
    }
}

fn details(id: &str, found: &Value) -> Details {
    let (host, config, state) = (&found["HostConfig"], &found["Config"], &found["State"]);
    let labels = labels(&config["Labels"]);
    // A read-only bind of a socket is as good as any.
    let binds = [strings(&host["Binds"]), mounts(&found["Mounts"])].concat();
    let container = facts::Container {
        id: id.to_owned(),
        name: text(&found["Name"]).trim_start_matches('/').to_owned(),
        image: text(&config["Image"]),
        created: found["Created"].as_str().and_then(seconds),
        init: process(&state["Pid"]).unwrap_or(0),
        pids_limit: host["PidsLimit"].as_i64(),
        cgroup_parent: text(&host["CgroupParent"]),
        cgroupns_mode: text(&host["CgroupnsMode"]),
        cgroups: text(&host["Cgroups"]),
        pid_mode: text(&host["PidMode"]),
        privileged: host["Privileged"] == true,
        cap_add: strings(&host["CapAdd"]),
        runtime: text(&host["Runtime"]),
        init_process: host["Init"] == true,
        binds_docker_socket: binds.iter().any(|bind| bind.contains("docker.sock")),
        binds_cgroupfs: binds.iter().any(|bind| bind.starts_with("/sys/fs/cgroup")),
        nproc_ulimit: nproc(&host["Ulimits"]),
        health: state["Health"]["Status"].as_str().map(|health| shown(health, MAX_NAME)),
        swarm_service: labels.get("com.docker.swarm.service.id").cloned(),
        memory: facts::Memory {
            max: host["Memory"].as_u64().filter(|bytes| *bytes > 0),
            ..facts::Memory::default()
        },
        ..facts::Container::default()
    };
    Details {
        container,
        compose: compose(&labels),
        working_dir: labels
            .get("com.docker.compose.project.working_dir")
            .cloned()
            .unwrap_or_default(),
        environment_file: labels.get("com.docker.compose.project.environment_file").cloned(),
    }
}

/// The labels that compose leaves (docker/compose `pkg/api/labels.go`).
fn compose(labels: &BTreeMap<String, String>) -> Option<Compose> {
    let label = |name: &str| labels.get(&format!("com.docker.compose.{name}")).cloned();
    let podman = labels.get("io.podman.compose.version").cloned();
    let tool = if podman.is_some() { facts::PODMAN_COMPOSE } else { "compose" };
    let files = label("project.config_files").unwrap_or_default();
    Some(Compose {
        project: label("project")?,
        service: label("service")?,
        tool: tool.to_owned(),
        version: podman.or_else(|| label("version")),
        files: files
            .split(',')
            .filter(|file| !file.is_empty())
            .take(MAX_FILES)
            .map(str::to_owned)
            .collect(),
        ..Compose::default()
    })
}

/// Labels come from images: any name, any value, any number.
fn labels(value: &Value) -> BTreeMap<String, String> {
    let all = value.as_object().into_iter().flatten().take(MAX_LABELS);
    all.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
}

fn mounts(value: &Value) -> Vec<String> {
    let all = value.as_array().into_iter().flatten().take(MAX_LABELS);
    all.filter(|mount| mount["RW"] != false).map(|mount| text(&mount["Source"])).collect()
}

fn nproc(ulimits: &Value) -> Option<i64> {
    let one = ulimits
        .as_array()?
        .iter()
        .find(|one| one["Name"] == "nproc" || one["Name"] == "RLIMIT_NPROC");
    one?["Hard"].as_i64()
}

fn process(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0)
}

fn text(value: &Value) -> String {
    shown(value.as_str().unwrap_or_default(), MAX_TEXT)
}

fn shown(text: &str, limit: usize) -> String {
    escape(text.as_bytes(), limit)
}

fn strings(value: &Value) -> Vec<String> {
    let all = value.as_array().into_iter().flatten().take(MAX_EXECS);
    all.map(text).collect()
}

/// Seconds since 1970 of `2026-11-23T04:05:06.789Z`; engines write UTC or an offset.
fn seconds(text: &str) -> Option<u64> {
    u64::try_from(text.parse::<Timestamp>().ok()?.as_second()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn times_of_both_engines() {
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
    fn null_and_zero_stay_apart() {
        let limit = |value: Value| {
            details("x", &json!({ "HostConfig": { "PidsLimit": value } })).container.pids_limit
        };
        assert_eq!(
            [limit(Value::Null), limit(json!(0)), limit(json!(-1))],
            [None, Some(0), Some(-1)]
        );
    }

    #[test]
    fn nothing_an_engine_answers_is_relied_upon() {
        for value in
            [json!(null), json!([]), json!({ "HostConfig": 7, "State": "x", "Config": [] })]
        {
            let found = details("x", &value);
            assert_eq!((found.container.init, found.compose), (0, None));
        }
        let labels = json!({ "Config": { "Labels": {
            "com.docker.compose.project": "p", "com.docker.compose.service": "web",
            "com.docker.compose.project.config_files": "/srv/a.yml,,/srv/b.yml",
        } } });
        assert_eq!(details("x", &labels).compose.unwrap().files, ["/srv/a.yml", "/srv/b.yml"]);
    }
}

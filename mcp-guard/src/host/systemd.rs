//! systemd's manager over D-Bus: reads and changes the limits of units.
//!
//! For properties and errors see org.freedesktop.systemd1(5).

use std::{path::Path, time::Duration};

use mcp_guard_core::{diagnose::facts::Unit, limit::Limit};
use serde::Serialize;
use zbus::{
    Connection, Message,
    zvariant::{DynamicType, OwnedObjectPath, OwnedValue, Value},
};

/// The time limit for one answer: a manager that hangs must not block us.
const PATIENCE: Duration = Duration::from_secs(5);
/// A directory that exists if systemd is the init of this host, see sd_booted(3).
const BOOTED: &str = "/run/systemd/system";
const SERVICE: &str = "org.freedesktop.systemd1";
const MANAGER: &str = "/org/freedesktop/systemd1";
/// The value that stands for `infinity` in every limit.
const INFINITY: u64 = u64::MAX;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("systemd: {0}")]
    Bus(#[from] zbus::Error),
    #[error("systemd did not answer within {PATIENCE:?}")]
    Late,
}

/// A connection to the system bus, and the manager's values that apply to every unit.
pub struct Systemd {
    bus: Connection,
    version: u32,
    default_tasks_max: Option<Limit>,
}

impl Systemd {
    /// Connects, and reads the manager's values. `None` if systemd is not the init of this host.
    pub async fn connect() -> Option<Result<Self, Error>> {
        Path::new(BOOTED).exists().then_some(())?;
        Some(Self::ask_manager().await)
    }

    /// Connects without reading the manager's values, because a write should ask for as little as
    /// possible. `None` if systemd is not the init of this host.
    pub async fn for_a_write() -> Option<Result<Self, Error>> {
        Path::new(BOOTED).exists().then_some(())?;
        Some(Self::on_the_bus().await)
    }

    async fn on_the_bus() -> Result<Self, Error> {
        let bus = within(Connection::system()).await?;
        Ok(Self { bus, version: 0, default_tasks_max: None })
    }

    async fn ask_manager() -> Result<Self, Error> {
        let mut systemd = Self::on_the_bus().await?;
        let version = systemd.property(MANAGER, "Manager", "Version").await?;
        systemd.version = String::try_from(version).map(|text| major(&text)).unwrap_or(0);
        let default = systemd.property(MANAGER, "Manager", "DefaultTasksMax").await?;
        systemd.default_tasks_max = limit(default);
        Ok(systemd)
    }

    /// Returns systemd's major version, such as 252, or 0 if it cannot be parsed.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version
    }

    #[must_use]
    pub fn default_tasks_max(&self) -> Option<Limit> {
        self.default_tasks_max
    }

    /// Finds the unit that a cgroup belongs to. `None` if there is none, or only a slice above it.
    ///
    /// # Errors
    /// If systemd does not answer, or refuses.
    pub async fn unit_of(&self, cgroup: &str) -> Result<Option<Unit>, Error> {
        let asked = self.manager("GetUnitByControlGroup", &(cgroup,)).await;
        let Some(path) = known(asked)? else { return Ok(None) };
        let name = self.text(&path, "Unit", "Id").await?;
        // systemd names the slice for a cgroup that no unit has, and sets no limit there.
        if name.ends_with(".slice") && cgroup.rsplit('/').next() != Some(&name) {
            return Ok(None);
        }
        let Some(interface) = interface(&name) else { return Ok(None) };
        let transient = self.property(&path, "Unit", "Transient").await?;
        Ok(Some(Unit {
            tasks_max: limit(self.property(&path, interface, "TasksMax").await?),
            default_tasks_max: self.default_tasks_max,
            systemd: self.version,
            transient: bool::try_from(transient).unwrap_or(false),
            slice: self.text(&path, interface, "Slice").await?,
            name,
        }))
    }

    /// Returns the cgroup of a unit. `None` if the unit is not loaded or has no process.
    ///
    /// # Errors
    /// If systemd does not answer, or refuses.
    pub async fn cgroup_of(&self, unit: &str) -> Result<Option<String>, Error> {
        let Some(path) = known(self.manager("GetUnit", &(unit,)).await)? else { return Ok(None) };
        let Some(interface) = interface(unit) else { return Ok(None) };
        let cgroup = self.text(&path, interface, "ControlGroup").await?;
        Ok(Some(cgroup).filter(|cgroup| !cgroup.is_empty()))
    }

    /// Returns `TasksMax` of a unit. `None` if the unit is not loaded.
    ///
    /// # Errors
    /// If systemd does not answer, or refuses.
    pub async fn tasks_max(&self, unit: &str) -> Result<Option<Limit>, Error> {
        let Some(path) = known(self.manager("GetUnit", &(unit,)).await)? else { return Ok(None) };
        let Some(interface) = interface(unit) else { return Ok(None) };
        Ok(limit(self.property(&path, interface, "TasksMax").await?))
    }

    /// Returns `TasksMax` of a unit, if its files set another value than the default.
    ///
    /// # Errors
    /// If systemd does not answer, or refuses.
    pub async fn own_tasks_max(&self, unit: &str) -> Result<Option<Limit>, Error> {
        let own = self.tasks_max(unit).await?;
        Ok(own.filter(|own| Some(*own) != self.default_tasks_max))
    }

    /// Sets `TasksMax` of a unit. A daemon-reload does not undo it. With `runtime` it lasts until
    /// the next boot at most, and for a transient unit until the unit ends.
    ///
    /// # Errors
    /// If systemd does not answer, or refuses: there is no such unit, or no right to change it.
    pub async fn set_tasks_max(
        &self,
        unit: &str,
        limit: Limit,
        runtime: bool,
    ) -> Result<(), Error> {
        let value = Value::U64(limit.tasks().unwrap_or(INFINITY));
        let properties = vec![("TasksMax", value)];
        self.manager("SetUnitProperties", &(unit, runtime, properties)).await?;
        Ok(())
    }

    async fn text(&self, path: &str, interface: &str, name: &str) -> Result<String, Error> {
        let value = self.property(path, interface, name).await?;
        String::try_from(value).map_err(|error| Error::Bus(error.into()))
    }

    async fn property(&self, path: &str, interface: &str, name: &str) -> Result<OwnedValue, Error> {
        let asked = (format!("{SERVICE}.{interface}"), name);
        let answer = self.call(path, "org.freedesktop.DBus.Properties", "Get", &asked).await?;
        Ok(answer.body().deserialize()?)
    }

    async fn manager<B: Serialize + DynamicType>(
        &self,
        method: &str,
        body: &B,
    ) -> Result<Message, Error> {
        self.call(MANAGER, "org.freedesktop.systemd1.Manager", method, body).await
    }

    async fn call<B: Serialize + DynamicType>(
        &self,
        path: &str,
        interface: &str,
        method: &str,
        body: &B,
    ) -> Result<Message, Error> {
        within(self.bus.call_method(Some(SERVICE), path, Some(interface), method, body)).await
    }
}

async fn within<T>(asked: impl Future<Output = zbus::Result<T>>) -> Result<T, Error> {
    Ok(tokio::time::timeout(PATIENCE, asked).await.map_err(|_| Error::Late)??)
}

/// Returns the path in an answer. `None` if systemd knows no such unit.
fn known(answer: Result<Message, Error>) -> Result<Option<String>, Error> {
    match answer {
        Ok(message) => {
            let path: OwnedObjectPath = message.body().deserialize()?;
            Ok(Some(path.to_string()))
        }
        Err(Error::Bus(zbus::Error::MethodError(name, _, _)))
            if name.ends_with("systemd1.NoSuchUnit") =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Returns the interface that has the limits of a unit of this type.
fn interface(unit: &str) -> Option<&'static str> {
    match unit.rsplit('.').next()? {
        "scope" => Some("Scope"),
        "service" => Some("Service"),
        "slice" => Some("Slice"),
        _ => None,
    }
}

fn limit(value: OwnedValue) -> Option<Limit> {
    match u64::try_from(value).ok()? {
        INFINITY => Some(Limit::Max),
        tasks => Some(Limit::Tasks(tasks)),
    }
}

/// Parses the major version: "252.39-1~deb12u1" is 252.
fn major(version: &str) -> u32 {
    let digits = version.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(version.len());
    version[..digits].parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_begins_with_the_major_number() {
        assert_eq!(major("252.39-1~deb12u1"), 252);
        assert_eq!(major("257"), 257);
        assert_eq!(major("unknown"), 0);
    }
}

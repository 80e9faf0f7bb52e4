//! N: a herd of containers of one image whose clients are gone, as `docker run -i` leaves them behind.
//!
//! It catches what a client that was killed leaves of its servers: each is a container of its own, and so a guard of
//! its own, in which nothing grows. It must not catch a container whose client lives and has only ended its input
//! (`echo script | docker run -i`, a CI job), one that nobody was ever attached to, or one that keeps its stdin
//! without a client. So the stdin must have ended, and the engine's own end of the connection must tell that no
//! client is left.
//!
//! Docker does not tell which connection leads to which container. So they are counted: of n containers whose stdin
//! has ended, at most as many have a client as there are living connections that may be theirs. The rest has none.
//! It is at least as many as that, and perhaps more.
//!
//! The numbers: a client that ends takes its container with it, within the ten seconds that MCP clients wait. One or
//! two that stay a minute may be the work of a person; three of one image are a habit.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{Detection, count};
use crate::{
    Time,
    evidence::{ClientIs, ClientsLook, Connections, EndedStdin, InteractiveContainer},
    incident::Detector,
    policy::Herd as Limits,
};

/// Most containers that are named.
const MOST_NAMES: usize = 50;
/// A look may be as old as this many times the interval between two looks.
const FRESH: u32 = 2;

/// The containers of one image or label that have lost their clients.
#[derive(Clone, Debug, PartialEq)]
pub struct HerdFound {
    /// The engine's socket.
    pub engine: String,
    /// The image, or the label as `KEY=VALUE`.
    pub identity: String,
    /// How many of the containers have no client, at least.
    pub abandoned: usize,
    /// How many containers there are whose stdin has ended and whose client is not known to live.
    pub ended: usize,
    /// The names of these containers, 50 at most.
    pub containers: Vec<String>,
    pub connections: Connections,
    pub longest: Duration,
}

impl HerdFound {
    #[must_use]
    pub fn detection(&self) -> Detection {
        let numbers = [
            ("abandoned", count(self.abandoned)),
            ("ended", count(self.ended)),
            ("dead_connections", self.connections.dead),
            ("living_connections", self.connections.living),
            ("longest_s", self.longest.as_secs()),
        ];
        Detection::new(Detector::Herd, Some(&self.identity), &numbers, None)
    }
}

/// The label, or else the digest of the image.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum HerdKind {
    Label(String),
    Image(String),
}

impl HerdKind {
    fn of(container: &InteractiveContainer) -> Self {
        match &container.label {
            Some(label) => Self::Label(label.clone()),
            None => Self::Image(container.image_id.clone()),
        }
    }
}

/// All that looks have shown about the containers of all engines.
#[derive(Clone, Debug, Default)]
pub struct Herds {
    engines: BTreeMap<String, EngineHerds>,
}

#[derive(Clone, Debug, Default)]
struct EngineHerds {
    looked: Time,
    /// Since when the stdin of each container has ended.
    since: BTreeMap<String, Time>,
    herds: BTreeMap<HerdKind, HerdFound>,
    /// The kinds that were warned about, as long as their containers are there.
    warned: BTreeSet<HerdKind>,
}

impl Herds {
    /// Takes a look at an engine. Returns the herds that are new.
    pub fn take(&mut self, now: Time, look: ClientsLook, limits: &Limits) -> Vec<HerdFound> {
        let engine = self.engines.entry(look.engine.clone()).or_default();
        engine.looked = now;
        let mut since = std::mem::take(&mut engine.since);
        let mut kinds: BTreeMap<HerdKind, HerdMembers> = BTreeMap::new();
        for EndedStdin { container, client } in look.ended {
            let began = since.remove(&container.id).unwrap_or(now);
            engine.since.insert(container.id.clone(), began);
            if client != ClientIs::Alive && now.since(began) >= limits.age {
                let members = kinds.entry(HerdKind::of(&container)).or_default();
                members.add(container, client, now.since(began));
            }
        }
        // Clients that come and go for a moment do not end an episode.
        let lasts = |kind: &HerdKind| kinds.get(kind).is_some_and(|one| one.ended() >= limits.warn);
        engine.warned.retain(lasts);
        let herds = kinds
            .into_iter()
            .map(|(kind, members)| (kind, members.herd(look.engine.clone(), look.connections)));
        engine.herds = herds.filter(|(_, herd)| herd.abandoned >= limits.warn).collect();
        let warned = &mut engine.warned;
        let new = engine.herds.iter().filter(|(kind, _)| warned.insert((*kind).clone()));
        new.map(|(_, herd)| herd.clone()).collect()
    }

    /// The host has slept: no client could end its container meanwhile.
    pub fn woke(&mut self, now: Time) {
        for engine in self.engines.values_mut() {
            engine.since.values_mut().for_each(|since| *since = now);
        }
    }

    /// Returns the herds of the last looks. `every`: the time between two.
    pub fn all(&self, now: Time, every: Duration) -> impl Iterator<Item = &HerdFound> {
        let fresh = FRESH * every;
        let engines = self.engines.values().filter(move |one| now.since(one.looked) <= fresh);
        engines.flat_map(|engine| engine.herds.values())
    }
}

/// Containers of one kind whose stdin has ended long enough.
#[derive(Default)]
struct HerdMembers {
    image: String,
    label: Option<String>,
    names: BTreeSet<String>,
    gone: usize,
    not_told: usize,
    longest: Duration,
}

impl HerdMembers {
    fn add(&mut self, container: InteractiveContainer, client: ClientIs, since: Duration) {
        match client {
            ClientIs::Gone => self.gone += 1,
            ClientIs::NotTold => self.not_told += 1,
            ClientIs::Alive => return,
        }
        (self.image, self.label) = (container.image, container.label);
        self.names.insert(container.name);
        self.longest = self.longest.max(since);
    }

    fn ended(&self) -> usize {
        self.gone + self.not_told
    }

    fn herd(self, engine: String, connections: Connections) -> HerdFound {
        let ended = self.ended();
        let living = usize::try_from(connections.living).unwrap_or(usize::MAX);
        HerdFound {
            engine,
            identity: self.label.unwrap_or(self.image),
            abandoned: self.gone + self.not_told.saturating_sub(living),
            ended,
            containers: self.names.into_iter().take(MOST_NAMES).collect(),
            connections,
            longest: self.longest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn container(number: usize, image: &str, label: Option<&str>) -> InteractiveContainer {
        InteractiveContainer {
            id: format!("{image} {number}"),
            name: format!("{image}-{number}"),
            image: image.to_owned(),
            image_id: format!("sha256:{image}"),
            label: label.map(str::to_owned),
        }
    }

    fn ended(count: usize, image: &str, client: ClientIs) -> Vec<EndedStdin> {
        (0..count)
            .map(|one| EndedStdin { container: container(one, image, None), client })
            .collect()
    }

    fn look(ended: Vec<EndedStdin>, living: u64, dead: u64) -> ClientsLook {
        let connections = Connections { living, dead };
        ClientsLook { engine: "docker.sock".to_owned(), ended, connections }
    }

    /// The herds that are warned about after looks at this time, in seconds.
    fn warned(looks: &[(u64, ClientsLook)]) -> Vec<(u64, String, usize)> {
        let (mut herds, limits) = (Herds::default(), Limits::default());
        let mut warned = Vec::new();
        for (at, look) in looks {
            let new = herds.take(Time(at * SECOND), look.clone(), &limits);
            for herd in new {
                assert_eq!(herd.detection().act, None);
                warned.push((*at, herd.identity, herd.abandoned));
            }
        }
        warned
    }

    /// Repeats a look at 100, 130, 160 and 190 s.
    fn lasting(look: &ClientsLook) -> Vec<(u64, String, usize)> {
        warned(&[100, 130, 160, 190].map(|at| (at, look.clone())))
    }

    #[test]
    fn containers_without_a_client_are_told_and_others_are_not() {
        use ClientIs::{Alive, Gone, NotTold};
        let mcp = |client, count| ended(count, "mcp/time", client);
        let told = |abandoned| vec![(160, "mcp/time".to_owned(), abandoned)];
        for (what, look, expected) in [
            ("five whose clients were killed", look(mcp(NotTold, 5), 0, 5), told(5)),
            (
                "the server has written since, so the engine knows",
                look(mcp(NotTold, 5), 0, 0),
                told(5),
            ),
            ("two", look(mcp(NotTold, 2), 0, 2), vec![]),
            ("echo script | docker run -i", look(mcp(NotTold, 5), 5, 0), vec![]),
            ("some are gone, and any may live", look(mcp(NotTold, 5), 2, 3), told(3)),
            ("too few of them are certainly gone", look(mcp(NotTold, 5), 3, 2), vec![]),
            ("more connections than containers", look(mcp(NotTold, 5), 9, 9), vec![]),
            ("five of Podman", look(mcp(Gone, 5), 0, 0), told(5)),
            ("scripts of Podman", look(mcp(Alive, 5), 0, 0), vec![]),
            ("Podman's do not need Docker's connections", look(mcp(Gone, 3), 7, 0), told(3)),
            (
                "one of each image",
                look([ended(2, "a", NotTold), ended(2, "b", NotTold)].concat(), 0, 4),
                vec![],
            ),
            ("no container whose stdin has ended", look(vec![], 0, 7), vec![]),
        ] {
            assert_eq!(lasting(&look), expected, "{what}");
        }
    }

    #[test]
    fn a_label_makes_one_herd_of_several_images_and_separates_one_image() {
        let member = |number: usize, image: &str, label: &str| EndedStdin {
            container: container(number, image, Some(label)),
            client: ClientIs::NotTold,
        };
        let one = (0..3).map(|number| member(number, ["a", "b", "c"][number], "docker-mcp-name=x"));
        let expected = [(160, "docker-mcp-name=x".to_owned(), 3)];
        assert_eq!(lasting(&look(one.collect(), 0, 3)), expected);
        let several =
            (0..3).map(|number| member(number, "a", &format!("docker-mcp-name={number}")));
        assert_eq!(lasting(&look(several.collect(), 0, 3)), []);
    }

    #[test]
    fn a_herd_is_told_once_until_it_has_gone() {
        let (five, four, two) = (
            look(ended(5, "a", ClientIs::NotTold), 0, 5),
            // A client that comes for a moment.
            look(ended(5, "a", ClientIs::NotTold), 4, 5),
            look(ended(2, "a", ClientIs::NotTold), 0, 2),
        );
        let at = |at, look: &ClientsLook| (at, look.clone());
        let story = [at(0, &five), at(60, &five), at(90, &four), at(120, &five)];
        assert_eq!(warned(&story), [(60, "a".to_owned(), 5)]);
        let story = [
            at(0, &five),
            at(60, &five),
            at(90, &two),
            at(120, &five),
            at(150, &five),
            at(180, &five),
        ];
        assert_eq!(warned(&story), [(60, "a".to_owned(), 5), (180, "a".to_owned(), 5)]);
    }

    #[test]
    fn the_time_counts_from_the_first_look_and_from_the_last_sleep() {
        let (mut herds, limits) = (Herds::default(), Limits::default());
        let five = || look(ended(5, "a", ClientIs::NotTold), 0, 5);
        let take = |herds: &mut Herds, at: u64| herds.take(Time(at * SECOND), five(), &limits);
        assert_eq!(take(&mut herds, 0), []);
        herds.woke(Time(3600 * SECOND));
        assert_eq!(take(&mut herds, 3601), []);
        let found = take(&mut herds, 3660);
        let [herd] = &found[..] else { panic!("{found:?}") };
        assert_eq!((herd.longest.as_secs(), herd.containers.len()), (60, 5));
        assert_eq!(herd.containers[0], "a-0");
        let numbers = &herd.detection().cause.numbers;
        assert_eq!((numbers["ended"], numbers["dead_connections"]), (5, 5));
        let every = Duration::from_secs(30);
        assert_eq!(herds.all(Time(3720 * SECOND), every).count(), 1);
        assert_eq!(herds.all(Time(3721 * SECOND), every).count(), 0, "the look is old");
    }
}

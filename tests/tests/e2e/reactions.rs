//! What is moved away from an identity loses it, and what is deleted takes along what hangs on it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use bed::eventually;
use e2e::refusal::reason;
use e2e::user::{
    access_rule, alias, assignment, aws_identity, group, group_move, membership, service_account,
    unassignment, workspace, workspace_move,
};
use e2e::{Service, User, World};
use futures::future::join_all;
use proto::access::v1 as access;
use proto::access::v1::Role;
use proto::access::v1::principal::Kind;
use proto::identity::v1 as identity;
use proto::namespace::v1 as namespace;
use sqlx::Row as _;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use crate::chance::Chance;
use crate::tree::{Tree, facts_of, is_the_same_everywhere};

/// What there is that hangs on something else, as the logs tell of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Registry {
    /// Group, by identity.
    identities: BTreeMap<String, String>,
    /// Identity, by alias; each alias is among the identities too.
    sources: BTreeMap<String, String>,
    /// Workspace and identity.
    assignments: BTreeSet<(String, String)>,
    /// Identity, by access rule.
    rules: BTreeMap<String, String>,
    /// Group, by service account.
    accounts: BTreeMap<String, String>,
    /// Group or workspace, and service account if it is one's, by membership.
    memberships: BTreeMap<String, (String, Option<String>)>,
}

fn made<V: std::fmt::Debug + PartialEq>(of: &mut BTreeMap<String, V>, id: String, on: V) {
    assert_eq!(of.insert(id, on), None, "made twice");
}

fn deleted<V>(of: &mut BTreeMap<String, V>, id: &str) {
    assert!(of.remove(id).is_some(), "{id} was deleted twice");
}

impl Registry {
    async fn read(world: &World) -> Self {
        let mut registry = Self::default();
        for event in world.log(Service::Identity).await {
            let event = identity::Event::decode(&event.event_type, &event.payload);
            registry.apply(event.expect("an event"));
        }
        for event in world.log(Service::Namespace).await {
            let event = namespace::Event::decode(&event.event_type, &event.payload);
            registry.apply_membership(event.expect("an event"));
        }
        registry
    }

    fn apply(&mut self, event: identity::Event) {
        use identity::Event;
        match event {
            Event::ManagedIdentityCreated(event) => made(
                &mut self.identities,
                event.managed_identity_id,
                event.group_id,
            ),
            Event::ManagedIdentityDeleted(event) => {
                deleted(&mut self.identities, &event.managed_identity_id);
            }
            Event::ManagedIdentityAliasCreated(event) => {
                let id = event.managed_identity_id;
                made(&mut self.identities, id.clone(), event.group_id);
                made(&mut self.sources, id, event.source_id);
            }
            Event::ManagedIdentityAliasDeleted(event) => {
                deleted(&mut self.identities, &event.managed_identity_id);
                deleted(&mut self.sources, &event.managed_identity_id);
            }
            Event::ManagedIdentityAssigned(event) => {
                let pair = (event.workspace_id, event.managed_identity_id);
                assert!(self.assignments.insert(pair), "assigned twice");
            }
            Event::ManagedIdentityUnassigned(event) => {
                let pair = (event.workspace_id, event.managed_identity_id);
                assert!(self.assignments.remove(&pair), "ended twice");
            }
            Event::AccessRuleCreated(event) => made(
                &mut self.rules,
                event.access_rule_id,
                event.managed_identity_id,
            ),
            Event::AccessRuleDeleted(event) => deleted(&mut self.rules, &event.access_rule_id),
            Event::ServiceAccountCreated(event) => {
                made(&mut self.accounts, event.service_account_id, event.group_id);
            }
            Event::ServiceAccountDeleted(event) => {
                deleted(&mut self.accounts, &event.service_account_id);
            }
            _ => {}
        }
    }

    fn apply_membership(&mut self, event: namespace::Event) {
        use namespace::Event;
        match event {
            Event::MembershipCreated(event) => {
                let principal = event.principal.and_then(|principal| principal.kind);
                let account = match principal {
                    Some(Kind::ServiceAccount(account)) => Some(account),
                    _ => None,
                };
                made(
                    &mut self.memberships,
                    event.membership_id,
                    (event.namespace_id, account),
                );
            }
            Event::MembershipDeleted(event) => {
                deleted(&mut self.memberships, &event.membership_id);
            }
            _ => {}
        }
    }

    /// What hangs on nothing, in words.
    fn orphans(&self, tree: &Tree) -> Vec<String> {
        let in_groups = self.identities.iter().chain(&self.accounts);
        let homeless = in_groups
            .filter(|(_, group)| !tree.0.contains_key(*group))
            .map(|(id, group)| format!("{id} is in {group}, which is gone"));
        let lost = self.assignments.iter().filter(|(workspace, identity)| {
            let group = self.identities.get(identity);
            !group.is_some_and(|group| {
                tree.0.contains_key(workspace) && tree.way_up(workspace).contains(&group.as_str())
            })
        });
        let lost = lost.map(|(workspace, identity)| format!("{identity} is no more {workspace}'s"));
        let sources = self.sources.iter();
        let sources = sources
            .filter(|(_, source)| {
                !self.identities.contains_key(*source) || self.sources.contains_key(*source)
            })
            .map(|(alias, source)| format!("{alias} is an alias of {source}"));
        let rules = self.rules.iter();
        let rules = rules
            .filter(|(_, identity)| !self.identities.contains_key(*identity))
            .map(|(rule, identity)| format!("{rule} is of {identity}, which is gone"));
        let held = self.memberships.iter();
        let held = held
            .filter(|(_, (namespace, account))| {
                let group = account.as_ref().map(|account| self.accounts.get(account));
                !tree.0.contains_key(namespace)
                    || group.is_some_and(|group| {
                        !group.is_some_and(|it| tree.way_up(namespace).contains(&it.as_str()))
                    })
            })
            .map(|(id, (namespace, account))| format!("{id} of {account:?} in {namespace}"));
        homeless
            .chain(sources)
            .chain(lost)
            .chain(rules)
            .chain(held)
            .collect()
    }

    /// As far as a service other than `namespace` keeps it.
    fn of_identity(&self) -> Self {
        Self {
            memberships: BTreeMap::new(),
            ..self.clone()
        }
    }
}

/// Waits until nothing is left to be done.
async fn is_quiet(world: &World) {
    let logs = [Service::Namespace, Service::Identity];
    eventually(async || {
        // All at once, in both: what one does may give the other something to do.
        let mut quiet = Vec::new();
        for (own, followed) in [(logs[0], logs[1]), (logs[1], logs[0])] {
            let row = sqlx::query(
                "SELECT (SELECT count(*) FROM reactions) AS waiting,
                        (SELECT position FROM looked_through) AS looked_through,
                        (SELECT position FROM checkpoints WHERE log = $1) AS followed",
            )
            .bind(followed.name())
            .fetch_one(world.database(own).pool())
            .await
            .map_err(|error| error.to_string())?;
            let is = ["waiting", "looked_through", "followed"].map(|name| row.get::<i64, _>(name));
            quiet.push((own, followed, is));
        }
        for (own, followed, is) in quiet {
            let ends = [own, followed].map(|service| world.log(service));
            let ends = join_all(ends).await;
            let ends = ends
                .iter()
                .map(|log| i64::try_from(log.len()).expect("few"));
            if is[0] != 0 || !is[1..].iter().copied().eq(ends) {
                return Err(format!(
                    "{own:?}: waiting, looked through, followed: {is:?}"
                ));
            }
        }
        Ok(())
    })
    .await;
}

/// Nothing hangs on nothing: in the logs, in the facts of each service that keeps them, and in the read models.
async fn no_orphan_is_left(world: &World) -> Registry {
    is_quiet(world).await;
    let tree = is_the_same_everywhere(world).await;
    let registry = Registry::read(world).await;
    assert_eq!(registry.orphans(&tree), [""; 0]);
    all_that_was_asked_for_is_decided(world, &tree).await;
    for service in [Service::Identity, Service::Issuer] {
        eventually(async || {
            let kept = kept(world, service).await.of_identity();
            if kept == registry.of_identity() {
                Ok(())
            } else {
                Err(format!(
                    "{service:?} keeps {kept:?}, and the log has {registry:?}"
                ))
            }
        })
        .await;
    }
    let kept = kept(world, Service::Namespace).await;
    assert!(kept.memberships.keys().eq(registry.memberships.keys()));
    eventually(async || {
        let rows =
            sqlx::query("SELECT workspace_id, managed_identity_id FROM directory_v10.assignments")
                .fetch_all(world.database(Service::Projector).pool())
                .await
                .map_err(|error| error.to_string())?;
        let shown: BTreeSet<_> = rows
            .iter()
            .map(|row| (row.get("workspace_id"), row.get("managed_identity_id")))
            .collect();
        if shown == registry.assignments {
            Ok(())
        } else {
            Err(format!("the directory shows {shown:?}"))
        }
    })
    .await;
    counts_are_right(world, &registry).await;
    registry
}

/// What came of the identities that workspaces were made with is known, once, of those that are there still.
async fn all_that_was_asked_for_is_decided(world: &World, tree: &Tree) {
    let mut decided: BTreeMap<String, usize> = BTreeMap::new();
    for event in world.log(Service::Identity).await {
        let event = identity::Event::decode(&event.event_type, &event.payload);
        if let identity::Event::InitialAssignmentsDecided(event) = event.expect("an event") {
            *decided.entry(event.workspace_id).or_default() += 1;
        }
    }
    for event in world.log(Service::Namespace).await {
        let event = namespace::Event::decode(&event.event_type, &event.payload);
        if let namespace::Event::WorkspaceCreated(event) = event.expect("an event") {
            let times = decided.remove(&event.workspace_id).unwrap_or_default();
            let asked = event.initial_assignments.is_some();
            let least = usize::from(asked && tree.0.contains_key(&event.workspace_id));
            let most = usize::from(asked);
            assert!((least..=most).contains(&times), "{event:?}: {times}");
        }
    }
    assert_eq!(decided, BTreeMap::new());
}

/// The same from a service's facts; of memberships, where they are held.
async fn kept(world: &World, service: Service) -> Registry {
    let mut registry = Registry::default();
    for (key, value) in facts_of(world, service, "facts", "").await {
        let above = value.split('/').next().unwrap_or_default().to_owned();
        match key.split('/').collect::<Vec<_>>().as_slice() {
            ["node", id] => {
                let id = (*id).to_owned();
                let kind = id.split('_').next();
                match kind {
                    Some("mi") => drop(registry.identities.insert(id, above)),
                    Some("rule") => drop(registry.rules.insert(id, above)),
                    Some("sa") => drop(registry.accounts.insert(id, above)),
                    Some("mbr") => drop(registry.memberships.insert(id, (above, None))),
                    _ => {}
                }
            }
            ["alias-source", alias] => {
                registry.sources.insert((*alias).to_owned(), value);
            }
            ["assignment", workspace, identity] => {
                let pair = ((*workspace).to_owned(), (*identity).to_owned());
                registry.assignments.insert(pair);
            }
            _ => {}
        }
    }
    registry
}

async fn counts_are_right(world: &World, registry: &Registry) {
    let mut expected: BTreeMap<String, i64> = BTreeMap::new();
    for group in registry.identities.values() {
        *expected
            .entry(format!("managed-identities/{group}"))
            .or_default() += 1;
    }
    for source in registry.sources.values() {
        *expected.entry(format!("alias-count/{source}")).or_default() += 1;
    }
    for group in registry.accounts.values() {
        *expected
            .entry(format!("service-accounts/{group}"))
            .or_default() += 1;
    }
    for (_, identity) in &registry.assignments {
        *expected
            .entry(format!("assignments/{identity}"))
            .or_default() += 1;
    }
    let facts = facts_of(world, Service::Identity, "facts", "").await;
    let counted = facts.into_iter().filter(|(key, _)| {
        let counts = [
            "managed-identities/",
            "alias-count/",
            "service-accounts/",
            "assignments/",
        ];
        counts.iter().any(|count| key.starts_with(count))
    });
    let counted: BTreeMap<_, _> = counted
        .map(|(key, count)| (key, count.parse::<i64>().expect("a count")))
        .collect();
    assert_eq!(counted, expected);
}

fn delete_workspace(id: &str) -> namespace::DeleteWorkspaceRequest {
    namespace::DeleteWorkspaceRequest {
        id: id.to_owned(),
        ..Default::default()
    }
}

fn delete_identity(id: &str) -> identity::DeleteManagedIdentityRequest {
    identity::DeleteManagedIdentityRequest {
        id: id.to_owned(),
        force: true,
        ..Default::default()
    }
}

fn delete_account(id: &str) -> identity::DeleteServiceAccountRequest {
    identity::DeleteServiceAccountRequest {
        id: id.to_owned(),
        ..Default::default()
    }
}

/// A service account's membership.
fn deploys(account: &str, place: &str) -> namespace::CreateMembershipRequest {
    let mut request = membership("", Role::Deployer, place);
    request.membership.get_or_insert_default().principal = Some(access::Principal {
        kind: Some(Kind::ServiceAccount(account.to_owned())),
    });
    request
}

fn delete_group(id: &str) -> namespace::DeleteGroupRequest {
    namespace::DeleteGroupRequest {
        id: id.to_owned(),
        force: true,
        ..Default::default()
    }
}

/// An identity of a cloud that has one more type, so that one workspace has room for both.
fn kubernetes_identity(path: &str) -> identity::CreateManagedIdentityRequest {
    let mut request = aws_identity(path);
    let kubernetes = identity::KubernetesConfiguration::default();
    request
        .managed_identity
        .get_or_insert_default()
        .configuration = Some(identity::Configuration {
        r#type: Some(identity::configuration::Type::Kubernetes(kubernetes)),
    });
    request
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_ends_exactly_what_is_no_longer_inherited() {
    let world = World::start().await;
    let admin = world.admin();
    for path in ["acme", "acme/a_b", "acme/axb", "acme/a_b/team"] {
        admin.creates_group(path).await;
    }
    let web = admin.creates_workspace("acme/a_b/team/web").await;
    let api = admin.creates_workspace("acme/a_b/team/api").await;
    let beside = admin.creates_workspace("acme/a_b/beside").await;
    let above = admin.creates_identity("acme/above").await;
    let left = admin.creates_identity("acme/a_b/left").await;
    let made = admin.asks(kubernetes_identity("acme/a_b/team/along")).await;
    let along = made.expect("made").managed_identity.expect("an identity");
    admin.assigns(&left.id, &web.id).await;
    admin.assigns(&along.id, &web.id).await;
    admin.assigns(&above.id, &api.id).await;
    admin.assigns(&left.id, &beside.id).await;
    let before = world.log(Service::Identity).await;

    admin
        .moves_group("trn:group:acme/a_b/team", "trn:group:acme/axb")
        .await;
    let registry = no_orphan_is_left(&world).await;
    let pair = |workspace: &namespace::Workspace, identity: &identity::ManagedIdentity| {
        (workspace.id.clone(), identity.id.clone())
    };
    assert_eq!(
        registry.assignments,
        [pair(&web, &along), pair(&api, &above), pair(&beside, &left)].into()
    );
    let log = world.log(Service::Identity).await;
    let ended = &log[before.len()..];
    assert_eq!(ended.len(), 1, "{ended:?}");
    assert!(ended[0].metadata.contains("service:identity"), "{ended:?}");
    // A workspace alone does the same, and there is room for another of the type.
    admin.moves_workspace(&beside.id, "trn:group:acme").await;
    no_orphan_is_left(&world).await;
    admin.assigns(&above.id, &beside.id).await;
    assert_eq!(world.log(Service::Identity).await.len(), log.len() + 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_deleted_takes_along_what_hangs_on_it() {
    let world = World::start().await;
    let (admin, dan) = (world.admin(), world.user("dan"));
    for path in ["acme", "acme/team", "acme/team/below"] {
        admin.creates_group(path).await;
    }
    let [web, api] = ["acme/team/below/web", "acme/api"].map(workspace);
    let web = admin.asks(web).await.expect("made").workspace.expect("it");
    let api = admin.asks(api).await.expect("made").workspace.expect("it");
    let above = admin.creates_identity("acme/above").await;
    let made = admin
        .asks(kubernetes_identity("acme/team/below/deep"))
        .await;
    let deep = made.expect("made").managed_identity.expect("an identity");
    let unused = admin.creates_identity("acme/team/unused").await;
    admin.restricts(&unused.id, &[dan.principal()]).await;
    admin.restricts(&above.id, &[dan.principal()]).await;
    admin.assigns(&above.id, &web.id).await;
    admin.assigns(&deep.id, &web.id).await;
    admin.assigns(&above.id, &api.id).await;

    let ci = admin.creates_service_account("acme/ci").await;
    let in_team = admin.creates_service_account("acme/team/ci").await;
    for (account, place) in [(&ci.id, &api.id), (&ci.id, &web.id), (&in_team.id, &web.id)] {
        admin.asks(deploys(account, place)).await.expect("granted");
    }
    admin.grants(&dan, Role::Owner, &web.id).await;

    admin.deletes_group("trn:group:acme/team").await;
    let registry = no_orphan_is_left(&world).await;
    assert_eq!(registry.identities.len(), 1);
    assert_eq!(registry.assignments.len(), 1);
    assert_eq!(registry.rules.len(), 1);
    assert_eq!(registry.accounts.len(), 1);
    // The first owner's, and the service account's in the other workspace.
    assert_eq!(registry.memberships.len(), 2);
    admin.asks(delete_account(&ci.id)).await.expect("deleted");
    assert_eq!(no_orphan_is_left(&world).await.memberships.len(), 1);
    // Without force now: the workspaces that had it are gone.
    admin
        .asks(delete_workspace(&api.id))
        .await
        .expect("deleted");
    assert!(no_orphan_is_left(&world).await.assignments.is_empty());
    let api = admin.creates_workspace("acme/api").await;
    admin.assigns(&above.id, &api.id).await;
    admin
        .asks(delete_identity(&above.id))
        .await
        .expect("deleted");
    let registry = no_orphan_is_left(&world).await;
    assert_eq!(registry.of_identity(), Registry::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happened_while_the_service_was_away_is_made_up_for() {
    let mut world = World::start().await;
    let admin = world.admin();
    for path in ["acme", "acme/one", "acme/two"] {
        admin.creates_group(path).await;
    }
    let one = admin.creates_identity("acme/one/deployer").await;
    admin.creates_identity("acme/two/deployer").await;
    let mut workspaces = Vec::new();
    for n in 0..8 {
        let made = admin.creates_workspace(&format!("acme/one/w{n}")).await;
        admin.assigns(&one.id, &made.id).await;
        workspaces.push(made);
    }
    world.stops(Service::Identity).await;
    let hasty = admin.in_a_hurry();
    for made in &workspaces[..4] {
        hasty
            .asks(workspace_move(&made.id, "trn:group:acme/two"))
            .await
            .expect("moved");
    }
    // Away and back again is as if nothing had been.
    let back = &workspaces[4].id;
    for to in ["trn:group:acme/two", "trn:group:acme/one"] {
        hasty.asks(workspace_move(back, to)).await.expect("moved");
    }
    hasty
        .asks(delete_group("trn:group:acme/two"))
        .await
        .expect("deleted");
    world.starts(Service::Identity).await;
    world.is_serving(Service::Identity).await;
    let registry = no_orphan_is_left(&world).await;
    assert_eq!(registry.identities.len(), 1);
    assert_eq!(registry.assignments.len(), 4);
}

/// Another process of `identity` on the same database.
struct Second {
    stop: CancellationToken,
    ended: JoinHandle<()>,
}

impl Second {
    async fn start(world: &World) -> Self {
        let environment: BTreeMap<_, _> =
            world.environment(Service::Identity).into_iter().collect();
        let lookup = |variable: &str| environment.get(variable).cloned();
        let config = edge::settings::from(&lookup, ::identity::Config::read);
        let config = config.expect("the configuration is right");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let ended = tokio::spawn(async move {
            let ended = ::identity::run(config, listener, stopped).await;
            ended.expect("it serves");
        });
        Self { stop, ended }
    }

    async fn ends(self) {
        self.stop.cancel();
        self.ended.await.expect("it does not panic");
    }
}

/// What callers have made so far, whether it is still there or not.
#[derive(Default)]
struct Made {
    groups: Vec<String>,
    workspaces: Vec<String>,
    identities: Vec<String>,
    accounts: Vec<String>,
}

/// A caller who does something at random, whatever comes of it.
struct Caller {
    user: User,
    chance: Chance,
    made: Arc<Mutex<Made>>,
    number: usize,
}

impl Caller {
    fn pick(&mut self, of: impl Fn(&Made) -> &Vec<String>) -> String {
        let made = self.made.lock().expect("nobody panics");
        self.chance.one_of(of(&made)).expect("there is one")
    }

    fn group(&mut self) -> String {
        self.pick(|made| &made.groups)
    }

    fn workspace(&mut self) -> String {
        self.pick(|made| &made.workspaces)
    }

    fn identity(&mut self) -> String {
        self.pick(|made| &made.identities)
    }

    fn account(&mut self) -> String {
        self.pick(|made| &made.accounts)
    }

    async fn acts(&mut self, turn: usize) {
        let name = format!("n{}-{turn}", self.number);
        let outcome = match self.chance.below(22) {
            0 => self.makes_group(&name).await,
            1 => self.makes_workspace(&name).await,
            2 | 3 => self.makes_identity(&name).await,
            4..=8 => {
                let (identity, workspace) = (self.identity(), self.workspace());
                let request = assignment(&identity, &workspace);
                self.user.asks(request).await.map(drop)
            }
            9 => {
                let (identity, workspace) = (self.identity(), self.workspace());
                let request = unassignment(&identity, &workspace);
                self.user.asks(request).await.map(drop)
            }
            10 | 11 => {
                let (group, to) = (self.group(), self.group());
                self.user.asks(group_move(&group, &to)).await.map(drop)
            }
            12 | 13 => {
                let (workspace, to) = (self.workspace(), self.group());
                let request = workspace_move(&workspace, &to);
                self.user.asks(request).await.map(drop)
            }
            14 => {
                let request = delete_identity(&self.identity());
                self.user.asks(request).await.map(drop)
            }
            15 => self.makes_account(&name).await,
            16 => {
                let request = access_rule(&self.identity(), &[self.user.principal()]);
                self.user.asks(request).await.map(drop)
            }
            17 => {
                let place = match turn % 3 {
                    0 => self.workspace(),
                    _ => self.group(),
                };
                let request = deploys(&self.account(), &place);
                self.user.asks(request).await.map(drop)
            }
            18 => {
                let request = delete_account(&self.account());
                self.user.asks(request).await.map(drop)
            }
            19 | 20 => self.makes_alias(&name).await,
            _ if turn.is_multiple_of(2) => {
                let request = delete_workspace(&self.workspace());
                self.user.asks(request).await.map(drop)
            }
            // Never the first ones, from which all began.
            _ => {
                let group = self.pick(|made| &made.groups);
                let kept = self.made.lock().expect("nobody panics").groups[..3].contains(&group);
                if kept {
                    Ok(())
                } else {
                    self.user.asks(delete_group(&group)).await.map(drop)
                }
            }
        };
        if let Err(status) = outcome {
            let expected = [
                Code::NotFound,
                Code::FailedPrecondition,
                Code::AlreadyExists,
                Code::Aborted,
            ];
            assert!(
                expected.contains(&status.code()),
                "{status:?} {}",
                reason(&status)
            );
        }
    }

    async fn makes_group(&mut self, name: &str) -> Result<(), Status> {
        let mut request = group(name);
        request.group.get_or_insert_default().parent_id = self.group();
        let made = self.user.asks(request).await?.group.expect("the group");
        let mut all = self.made.lock().expect("nobody panics");
        all.groups.push(made.id);
        Ok(())
    }

    async fn makes_workspace(&mut self, name: &str) -> Result<(), Status> {
        let identities = BTreeSet::from([self.identity(), self.identity()]);
        let mut request = workspace(name);
        request.workspace.get_or_insert_default().group_id = self.group();
        request.managed_identity_ids = identities.into_iter().collect();
        let made = self.user.asks(request).await?.workspace.expect("it");
        let mut all = self.made.lock().expect("nobody panics");
        all.workspaces.push(made.id);
        Ok(())
    }

    async fn makes_account(&mut self, name: &str) -> Result<(), Status> {
        let mut request = service_account(name);
        request.service_account.get_or_insert_default().group_id = self.group();
        let made = self.user.asks(request).await?;
        let mut all = self.made.lock().expect("nobody panics");
        all.accounts.push(made.service_account.expect("it").id);
        Ok(())
    }

    async fn makes_alias(&mut self, name: &str) -> Result<(), Status> {
        let mut request = alias(name, &self.identity());
        request.group_id = self.group();
        let made = self.user.asks(request).await?;
        let mut all = self.made.lock().expect("nobody panics");
        all.identities.push(made.managed_identity.expect("it").id);
        Ok(())
    }

    async fn makes_identity(&mut self, name: &str) -> Result<(), Status> {
        let mut request = match self.chance.below(2) {
            0 => aws_identity(name),
            _ => kubernetes_identity(name),
        };
        request.managed_identity.get_or_insert_default().group_id = self.group();
        let made = self.user.asks(request).await?;
        let mut all = self.made.lock().expect("nobody panics");
        all.identities.push(made.managed_identity.expect("it").id);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_any_history_nothing_hangs_on_nothing() {
    let world = World::start().await;
    let admin = world.admin();
    let second = Second::start(&world).await;
    let made = Arc::new(Mutex::new(Made::default()));
    for path in ["acme", "acme/a", "acme/b"] {
        let group = admin.creates_group(path).await;
        made.lock().expect("nobody panics").groups.push(group.id);
    }
    for path in ["acme/a/w1", "acme/b/w2", "acme/w3"] {
        let workspace = admin.creates_workspace(path).await;
        made.lock()
            .expect("nobody panics")
            .workspaces
            .push(workspace.id);
    }
    for path in ["acme/i1", "acme/a/i2", "acme/b/i3"] {
        let identity = admin.creates_identity(path).await;
        made.lock()
            .expect("nobody panics")
            .identities
            .push(identity.id);
    }
    let account = admin.creates_service_account("acme/a/ci").await;
    let all = Arc::clone(&made);
    all.lock().expect("nobody panics").accounts.push(account.id);
    for round in 0..4 {
        let callers = (0..4).map(|number| {
            let mut caller = Caller {
                user: admin.in_a_hurry(),
                chance: Chance::new(100 * round + number),
                made: Arc::clone(&made),
                number: usize::try_from(number).expect("it is small"),
            };
            async move {
                for turn in 0..40 {
                    caller
                        .acts(1_000 * usize::try_from(round).expect("small") + turn)
                        .await;
                }
            }
        });
        join_all(callers).await;
        no_orphan_is_left(&world).await;
    }
    second.ends().await;
    let ended = world.log(Service::Identity).await;
    let ended = ended
        .iter()
        .filter(|event| event.metadata.contains("service:identity"))
        .count();
    assert!(ended > 0, "nothing was ever left behind");
}

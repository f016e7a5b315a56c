//! With a hundred thousand groups and workspaces, an answer reads about as many rows as it has: no query goes through a
//! whole table. What PostgreSQL counted tells so, of the very queries that the rpcs make.

use bed::Database;
use edge::caller::Caller;
use edge::hierarchy::{Hierarchy, MEMBERS, Node, Place, node_key};
use edge::layer::Call;
use model::{
    GroupId, JobId, ManagedIdentityId, Permission, Principal, ResourceId, Role, ServiceAccountId,
    TeamId, WorkspaceId,
};
use projector::DirectoryRpc;
use proto::access::v1 as access;
use proto::directory::v1 as pb;
use proto::directory::v1::audit_service_server::AuditService as _;
use proto::directory::v1::directory_service_server::DirectoryService as _;
use sqlx::{AssertSqlSafe, PgPool};
use tonic::Request;
use uuid::Uuid;

/// What is not a hundred thousand is a thousand teams, each a group with 99 workspaces, in ten groups at the top.
const ROWS: &str = "
CREATE FUNCTION pg_temp.grams(name text) RETURNS integer[] LANGUAGE sql AS $$
    SELECT array_agg(DISTINCT ascii(substr(name, at, 1))
        + CASE WHEN long > 1 THEN ascii(substr(name, at, 1)) * 255 + ascii(substr(name, at + 1, 1)) ELSE 0 END
        + CASE WHEN long > 2 THEN ascii(substr(name, at, 1)) * 65280 + ascii(substr(name, at + 1, 1)) * 255
            + ascii(substr(name, at + 2, 1)) ELSE 0 END)
    FROM generate_series(1, 3) long, generate_series(1, length(name) - long + 1) at
$$;
CREATE TEMP TABLE top AS SELECT n, 'grp_top' || n AS id, 'top-' || n AS name FROM generate_series(0, 9) n;
CREATE TEMP TABLE team AS
    SELECT n, CASE n WHEN 7 THEN '{group}' ELSE 'grp_' || n END AS id, 'team-' || n AS name, n % 10 AS top
    FROM generate_series(0, 999) n;
CREATE TEMP TABLE workspace AS
    SELECT n, CASE n WHEN 7 THEN '{workspace}' ELSE 'ws_' || n END AS id, 'stage-' || n AS name, n % 1000 AS team
    FROM generate_series(0, 98999) n;
INSERT INTO namespaces (id, kind, parent_id, name, description, version, created_at, updated_at)
    SELECT id, 'group', '', name, '', 1, now() + n * interval '1 s', now() FROM top
    UNION ALL SELECT team.id, 'group', 'grp_top' || top, name, '', 1, now() + n * interval '1 s', now() FROM team
    UNION ALL SELECT workspace.id, 'workspace', team.id, workspace.name, '', 1,
        now() + workspace.n * interval '1 s', now() FROM workspace JOIN team ON team.n = workspace.team;
INSERT INTO places (id, kind, name, path, grams)
    SELECT id, 'group', name, name || '/', pg_temp.grams(name) FROM top
    UNION ALL SELECT id, 'group', name, 'top-' || top || '/' || name || '/', pg_temp.grams(name) FROM team
    UNION ALL SELECT workspace.id, 'workspace', workspace.name,
        'top-' || team.top || '/' || team.name || '/' || workspace.name || '/', pg_temp.grams(workspace.name)
        FROM workspace JOIN team ON team.n = workspace.team;
INSERT INTO members SELECT 'mbr_' || n, id, 'user:dev/member-' || n, 1, 1, now(), now() FROM team;
INSERT INTO members SELECT 'mbr_top' || n, id, 'user:dev/chief-' || n, 1, 1, now(), now() FROM top;
INSERT INTO members SELECT 'mbr_robot' || n, id, 'user:dev/robot', 1, 1, now() + n * interval '1 s', now() FROM workspace;
INSERT INTO members SELECT 'mbr_guest' || n, '{workspace}', 'user:dev/guest-' || n, 1, 1, now() + n * interval '1 s', now()
    FROM workspace;
INSERT INTO teams
    SELECT CASE n WHEN 7 THEN '{team}' ELSE 'team_' || n END, 'crew-' || n, '', 1, now() + n * interval '1 s', now()
    FROM workspace;
INSERT INTO team_members
    SELECT CASE WHEN n % 100 = 0 THEN '{team}' ELSE 'team_' || n END, 'user:dev/guest-' || n, now() FROM workspace;
INSERT INTO facts VALUES ('{team node}', '/crew-7');
INSERT INTO service_accounts
    SELECT 'sa_' || n, CASE WHEN n % 2 = 0 THEN '{group}' ELSE 'grp_' || n END, 'robot-' || n, '', '', 1,
        now() + n * interval '1 s', now()
    FROM workspace;
INSERT INTO managed_identities (id, group_id, name, description, configuration, version, created_at, updated_at, type, grams,
        token_settings)
    SELECT CASE WHEN n = 7 AND m = 0 THEN '{identity}' ELSE 'mi_' || n || '_' || m END, id, 'deployer-' || m || '-' || n, '', '',
        1, now(), now(), 'aws', pg_temp.grams('deployer-' || m || '-' || n), ''
    FROM team, generate_series(0, 4) m;
INSERT INTO managed_identities (id, source_id, group_id, name, description, configuration, version, created_at, updated_at,
        type, grams, token_settings)
    SELECT 'mi_alias' || n, CASE WHEN n % 100 = 0 THEN '{identity}' ELSE 'mi_' || team || '_1' END, CASE team WHEN 7 THEN '{group}' ELSE 'grp_' || team END,
        'alias-' || n, '', '', 1, now(), now(), 'aws', '{}', ''
    FROM workspace;
INSERT INTO masks SELECT 'mask_' || n || '_' || m, id, 'azure', '' FROM team, generate_series(0, 9) m;
INSERT INTO assignments
    SELECT workspace.id, CASE team WHEN 7 THEN '{identity}' ELSE 'mi_' || team || '_0' END FROM workspace;
INSERT INTO jobs SELECT 'job_' || n, id, 1, 'user:dev/x', '', now() + n * interval '1 s', now(), '', NULL FROM workspace;
INSERT INTO credentials
    SELECT n, now() + n * interval '1 s', 'jti-' || n, CASE n WHEN 17 THEN '{job}' ELSE 'job_' || n END, id,
        CASE team WHEN 7 THEN '{identity}' ELSE 'mi_' || team || '_0' END, CASE team WHEN 8 THEN '{identity}' END, '', 'aws',
        'kid-' || n / 1000, now() + n * interval '1 s', now(), '', NULL, id, 1, '', ''
    FROM workspace;
INSERT INTO credentials
    SELECT 1000000 + n, now() + n * interval '1 s', 'jti-sa-' || n, '', '', '', NULL, '', '', 'kid-' || n / 1000,
        now() + n * interval '1 s', now(), '',
        CASE n % 1000 WHEN 7 THEN '{account}' ELSE 'sa_' || n END, '{group}', 0, '', ''
    FROM workspace;
INSERT INTO activities
    SELECT 4 * n, now() + n * interval '1 s', 'user:dev/actor-' || n % 100, 'tharsis.namespace.v1.WorkspaceCreated', id, id,
        CASE team WHEN 7 THEN '{identity}' END, NULL
    FROM workspace;
INSERT INTO activities
    SELECT 4 * n, now() + n * interval '1 s', 'user:dev/actor-' || n % 100, 'tharsis.namespace.v1.WorkspaceMoved', id,
        CASE team WHEN 7 THEN '{group}' ELSE 'grp_' || team END, NULL, id
    FROM workspace WHERE n % 10 = 7;
ANALYZE;
";

/// What has many rows in one place, which few see; and who sees nothing, little or much of the rest.
const HIDDEN: &str = "
INSERT INTO places (id, kind, name, path, grams)
    SELECT 'grp_elsewhere', 'group', 'elsewhere', 'elsewhere/', '{}'::integer[]
    UNION ALL SELECT 'ws_' || n, 'workspace', 'stage-' || n, 'elsewhere/stage-' || n || '/', '{}' FROM generate_series(1, 3000) n
    UNION ALL SELECT '{workspace}', 'workspace', 'stage', 'hidden/stage/', '{}';
INSERT INTO namespaces (id, kind, parent_id, name, description, version, created_at, updated_at)
    SELECT id, kind, 'grp_parent', name, '', 1, now(), now() FROM places;
INSERT INTO members
    SELECT 'mbr_' || n, 'ws_' || n, 'user:dev/' || CASE n WHEN 1 THEN 'one' ELSE 'hundred' END, 1, 1, now(), now()
    FROM generate_series(1, 101) n
    UNION ALL SELECT 'mbr_all', 'grp_elsewhere', 'user:dev/all', 1, 1, now(), now()
    UNION ALL SELECT 'mbr_owner', '{workspace}', 'user:dev/owner', 1, 1, now(), now();
ANALYZE;
CREATE TEMP TABLE happened AS
    SELECT n, now() + n * interval '1 s' AS at, '{workspace}' AS place, '' AS seen FROM generate_series(1, 40000) n
    UNION ALL SELECT 50000 + n, now() - n * interval '1 s', 'ws_' || 1 + n % 1500, 'seen' FROM generate_series(1, 6000) n;
INSERT INTO credentials
    SELECT n + own, at, 'jti', CASE own WHEN 300000 THEN '{job}' ELSE '' END, place,
        CASE own WHEN 100000 THEN '{identity}' ELSE '' END, CASE own WHEN 200000 THEN '{identity}' END, '', 'aws',
        'kid', at, at, '', CASE own WHEN 400000 THEN '{account}' END, place, 1, '', ''
    FROM happened, generate_series(100000, 400000, 100000) own WHERE seen = '' OR own = 100000;
INSERT INTO activities
    SELECT 4 * n, at, 'user:dev/actor', 'tharsis.namespace.v1.WorkspaceUpdated', '{workspace}', place, NULL, NULL
    FROM happened WHERE seen = ''
    UNION ALL SELECT 4 * n + 1, at, 'user:dev/actor', 'tharsis.namespace.v1.WorkspaceUpdated', 'ws_1', place, '{identity}', NULL
    FROM happened;
";

/// Below one group, five hundred workspaces with a member each; elsewhere a hundred times as many.
const FACTS: &str = "
INSERT INTO facts (key, value)
    SELECT 'name/' || $1 || '/stage-' || number, id FROM UNNEST($2::text[]) WITH ORDINALITY AS below (id, number)
    UNION ALL SELECT 'member/' || id || '/user:dev/bob', 'viewer/mbr' FROM UNNEST($2::text[]) AS below (id)
    UNION ALL SELECT 'name/grp_' || n % 100 || '/stage-' || n, 'ws_' || n FROM generate_series(1, 50000) n
    UNION ALL SELECT 'member/ws_' || n || '/user:dev/bob', 'viewer/mbr' FROM generate_series(1, 50000) n
";

const READ: &str =
    "SELECT relname::text, seq_tup_read + coalesce(idx_tup_fetch, 0) FROM pg_stat_user_tables
     WHERE schemaname = 'public' AND relname = ANY($1) ORDER BY relname";
const FACTS_ALONE: [&str; 1] = ["facts"];
const TABLES: [&str; 11] = [
    "namespaces",
    "managed_identities",
    "places",
    "members",
    "teams",
    "team_members",
    "service_accounts",
    "assignments",
    "jobs",
    "credentials",
    "activities",
];
/// Rows that an answer of fifty may read: places are looked through by the thousand, or asked one by one, of which a
/// subtree of ten thousand takes 12,000 and a few, as the statistics fall. Each table has 100,000 and more.
const ENOUGH: i64 = 20_000;

/// What was read of the tables so far, by this one connection.
async fn read(pool: &PgPool, tables: &[&str]) -> i64 {
    sqlx::query("SELECT pg_stat_force_next_flush()")
        .execute(pool)
        .await
        .expect("PostgreSQL counts");
    let rows: Vec<(String, i64)> = sqlx::query_as(READ)
        .bind(tables)
        .fetch_all(pool)
        .await
        .expect("PostgreSQL has counted");
    assert_eq!(rows.len(), tables.len());
    rows.iter().map(|(_, count)| count).sum()
}

/// A request of a caller, at a place if it names one, as it comes out of the access layer.
fn request<T>(message: T, caller: &str, place: Option<&Place>) -> Request<T> {
    let mut request = Request::new(message);
    let principal = format!("user:dev/{caller}");
    request.extensions_mut().insert(Call {
        caller: Caller {
            principal: principal.parse::<Principal>().expect("a principal"),
            administrator: caller == "admin",
            event_reader: false,
            leans_on: None,
        },
        place: place.cloned(),
        refusal: None,
        permission: Permission::GroupView,
        validate_only: false,
        method: String::new(),
    });
    request
}

/// From the resource up.
fn place(nodes: Vec<(ResourceId, &str)>) -> Place {
    let node = |(id, name): (ResourceId, &str)| Node {
        id,
        name: name.to_owned(),
    };
    Place {
        nodes: nodes.into_iter().map(node).collect(),
        role: Some(Role::Viewer),
        granted_by: vec![],
        grants: vec![],
    }
}

fn text(text: &str) -> String {
    text.to_owned()
}

#[expect(clippy::too_many_lines, reason = "one request after the other")]
#[tokio::test]
async fn an_answer_reads_as_many_rows_as_it_needs() {
    let (group, workspace, identity) = (
        GroupId::from_uuid(Uuid::from_u128(7)),
        WorkspaceId::from_uuid(Uuid::from_u128(7)),
        ManagedIdentityId::from_uuid(Uuid::from_u128(7)),
    );
    let team = TeamId::from_uuid(Uuid::from_u128(7));
    let account = ServiceAccountId::from_uuid(Uuid::from_u128(7));
    let job = JobId::from_uuid(Uuid::from_u128(17));
    let database = Database::create().await;
    let pool = database.another_pool(1);
    eventlog::migrate(&pool, Some(&projector::MIGRATIONS))
        .await
        .expect("tables");
    let rows = ROWS
        .replace("{group}", &group.to_string())
        .replace("{workspace}", &workspace.to_string())
        .replace("{identity}", &identity.to_string())
        .replace("{account}", &account.to_string())
        .replace("{job}", &job.to_string())
        .replace("{team}", &team.to_string())
        .replace("{team node}", &node_key(team));
    sqlx::raw_sql(AssertSqlSafe(rows))
        .execute(&pool)
        .await
        .expect("rows");
    let top = GroupId::from_uuid(Uuid::from_u128(8));
    let at_top = place(vec![(top.into(), "top-7")]);
    let at_group = place(vec![(group.into(), "team-7"), (top.into(), "top-7")]);
    let at_workspace = place(vec![
        (workspace.into(), "stage-7"),
        (group.into(), "team-7"),
        (top.into(), "top-7"),
    ]);
    let at_identity = place(vec![
        (identity.into(), "deployer-0-7"),
        (group.into(), "team-7"),
        (top.into(), "top-7"),
    ]);
    let at_account = place(vec![
        (account.into(), "robot-7"),
        (group.into(), "team-7"),
        (top.into(), "top-7"),
    ]);
    let rpc = DirectoryRpc::new(pool.clone());
    let mut much = Vec::new();
    macro_rules! reads_little {
        ($method:ident $message:expr, $caller:expr, $place:expr, $field:ident $found:expr) => {{
            let before = read(&pool, &TABLES).await;
            let (message, caller) = ($message, $caller);
            let asked = format!("{caller} {message:?}");
            let answer = rpc.$method(request(message, caller, $place)).await;
            let found = answer.expect("an answer").into_inner().$field.len();
            let rows = read(&pool, &TABLES).await - before;
            eprintln!("{rows} rows for {found}: {asked}");
            assert_eq!(found, $found, "{asked}");
            if rows > ENOUGH {
                much.push(format!("{rows} rows for {found}: {asked}"));
            }
        }};
    }
    for order_by in ["", "name desc", "create_time", "update_time desc"] {
        let order_by = text(order_by);
        let children = pb::ListChildrenRequest {
            order_by,
            ..Default::default()
        };
        reads_little!(list_children children.clone(), "admin", Some(&at_group), children 50);
        reads_little!(list_children children.clone(), "admin", None, children 10);
        reads_little!(list_children children, "chief-3", None, children 1);
    }
    for order_by in ["", "name", "create_time desc"] {
        let list = pb::ListManagedIdentitiesRequest {
            order_by: text(order_by),
            ..Default::default()
        };
        reads_little!(list_managed_identities list, "admin", Some(&at_group), managed_identities 50);
    }
    let assigned = pb::ListWorkspaceManagedIdentitiesRequest {
        include_unusable: true,
        ..Default::default()
    };
    reads_little!(list_workspace_managed_identities assigned, "admin", Some(&at_workspace), managed_identities 1);
    let effective = pb::ListWorkspaceManagedIdentitiesRequest {
        include_unusable: true,
        include_unassigned: true,
        ..Default::default()
    };
    for order_by in ["", "name desc", "create_time", "update_time desc"] {
        let effective = pb::ListWorkspaceManagedIdentitiesRequest {
            order_by: text(order_by),
            ..effective.clone()
        };
        reads_little!(list_workspace_managed_identities effective, "admin", Some(&at_workspace), managed_identities 50);
    }
    for order_by in ["", "create_time desc"] {
        let workspaces = pb::ListManagedIdentityWorkspacesRequest {
            order_by: text(order_by),
            ..Default::default()
        };
        reads_little!(list_managed_identity_workspaces workspaces.clone(), "admin", Some(&at_identity), workspaces 50);
        reads_little!(list_managed_identity_workspaces workspaces, "member-7", Some(&at_identity), workspaces 50);
    }
    for order_by in ["", "name desc", "create_time", "update_time desc"] {
        let aliases = pb::ListManagedIdentityAliasesRequest {
            order_by: text(order_by),
            ..Default::default()
        };
        reads_little!(list_managed_identity_aliases aliases, "member-7", Some(&at_identity), aliases 50);
    }
    for (query, prefix, caller, found) in [
        ("", false, "admin", 50),
        ("stage", false, "admin", 50),
        ("team-77/stage", false, "admin", 50),
        ("stage-98765", false, "admin", 1),
        ("-98765", false, "admin", 1),
        ("zz", false, "admin", 0),
        ("stage-9876", true, "admin", 11),
        ("top-7/team-7/", true, "admin", 50),
        ("", false, "member-7", 50),
        ("stage-98765", false, "member-7", 0),
        ("stage-98007", false, "member-7", 1),
        ("", false, "chief-7", 50),
        ("stage-98007", false, "chief-7", 1),
    ] {
        let r#match = if prefix {
            pb::Match::Prefix
        } else {
            pb::Match::Substring
        };
        let search = pb::SearchNamespacesRequest {
            query: text(query),
            r#match: r#match.into(),
            ..Default::default()
        };
        reads_little!(search_namespaces search, caller, None, namespaces found);
    }
    for (query, caller, found) in [
        ("", "admin", 50),
        ("deployer", "admin", 50),
        ("deployer-3-977", "admin", 1),
        ("team-977/dep", "admin", 5),
        ("", "member-7", 50),
        ("deployer-3", "chief-7", 50),
        ("deployer-3-977", "chief-7", 1),
        ("deployer-3-977", "chief-3", 0),
    ] {
        let search = pb::SearchManagedIdentitiesRequest {
            query: text(query),
            ..Default::default()
        };
        reads_little!(search_managed_identities search, caller, None, managed_identities found);
    }
    for order_by in ["", "principal desc", "create_time", "update_time desc"] {
        let list = pb::ListMembershipsRequest {
            order_by: text(order_by),
            ..Default::default()
        };
        reads_little!(list_memberships list, "admin", Some(&at_workspace), memberships 50);
    }
    let user = |name: &str| access::Principal {
        kind: Some(access::principal::Kind::User(format!("dev/{name}"))),
    };
    for name in ["guest-98765", "robot"] {
        let list = pb::ListMembershipsRequest {
            principal: Some(user(name)),
            ..Default::default()
        };
        reads_little!(list_memberships list, "admin", Some(&at_workspace), memberships 1);
    }
    for (name, caller, found) in [("robot", "admin", 50), ("guest-7", "member-7", 1)] {
        for order_by in ["", "create_time desc"] {
            let list = pb::ListPrincipalMembershipsRequest {
                principal: Some(user(name)),
                order_by: text(order_by),
                ..Default::default()
            };
            reads_little!(list_principal_memberships list, caller, None, memberships found);
        }
    }
    for order_by in ["", "create_time desc", "update_time"] {
        let list = pb::ListTeamsRequest {
            order_by: text(order_by),
            ..Default::default()
        };
        reads_little!(list_teams list, "member-7", None, teams 50);
    }
    let of_member = pb::ListTeamsRequest {
        member: text("dev/guest-98765"),
        ..Default::default()
    };
    reads_little!(list_teams of_member, "member-7", None, teams 1);
    for order_by in ["", "user desc", "add_time"] {
        let of_team = pb::ListTeamMembersRequest {
            team_id: team.to_string(),
            order_by: text(order_by),
            ..Default::default()
        };
        reads_little!(list_team_members of_team, "member-7", None, members 50);
    }
    for order_by in ["", "name desc", "create_time", "update_time desc"] {
        let list = pb::ListServiceAccountsRequest {
            order_by: text(order_by),
            ..Default::default()
        };
        reads_little!(list_service_accounts list, "admin", Some(&at_group), service_accounts 50);
    }
    for order_by in ["", "create_time"] {
        let jobs = pb::ListJobsRequest {
            order_by: text(order_by),
            ..Default::default()
        };
        reads_little!(list_jobs jobs.clone(), "member-7", Some(&at_workspace), jobs 1);
        reads_little!(list_jobs jobs.clone(), "member-7", Some(&at_group), jobs 50);
        reads_little!(list_jobs jobs.clone(), "member-7", None, jobs 50);
        reads_little!(list_jobs jobs.clone(), "chief-7", Some(&at_top), jobs 50);
        reads_little!(list_jobs jobs, "admin", None, jobs 50);
    }
    let credentials = pb::ListCredentialsRequest::default;
    let from_the_first = pb::ListCredentialsRequest {
        order_by: text("issue_time"),
        ..credentials()
    };
    reads_little!(list_credentials from_the_first, "member-7", Some(&at_identity), credentials 50);
    reads_little!(list_credentials credentials(), "admin", None, credentials 50);
    reads_little!(list_credentials credentials(), "member-7", Some(&at_workspace), credentials 1);
    reads_little!(list_credentials credentials(), "member-7", Some(&at_identity), credentials 50);
    reads_little!(list_credentials credentials(), "member-7", Some(&at_account), credentials 50);
    let by_token = pb::ListCredentialsRequest {
        token_id: text("jti-1007"),
        ..credentials()
    };
    reads_little!(list_credentials by_token, "member-7", None, credentials 1);
    let by_key = pb::ListCredentialsRequest {
        kid: text("kid-17"),
        ..credentials()
    };
    reads_little!(list_credentials by_key, "admin", None, credentials 50);
    let by_job = pb::ListCredentialsRequest {
        job_id: job.to_string(),
        ..credentials()
    };
    reads_little!(list_credentials by_job.clone(), "admin", None, credentials 1);
    reads_little!(list_credentials by_job.clone(), "chief-7", Some(&at_top), credentials 1);
    reads_little!(list_credentials by_job, "member-7", None, credentials 0);
    let by_identity = pb::ListCredentialsRequest {
        managed_identity_id: identity.to_string(),
        ..credentials()
    };
    reads_little!(list_credentials by_identity, "member-7", None, credentials 50);
    let by_account = pb::ListCredentialsRequest {
        service_account_id: account.to_string(),
        ..credentials()
    };
    reads_little!(list_credentials by_account, "chief-7", None, credentials 50);
    let by_workspace = pb::ListCredentialsRequest {
        workspace_id: workspace.to_string(),
        ..credentials()
    };
    for (caller, found) in [("admin", 1), ("member-7", 1), ("member-8", 0)] {
        reads_little!(list_credentials by_workspace.clone(), caller, None, credentials found);
    }
    for order_by in ["", "issue_time"] {
        let below = pb::ListCredentialsRequest {
            order_by: text(order_by),
            ..credentials()
        };
        reads_little!(list_credentials below.clone(), "member-8", None, credentials 50);
        reads_little!(list_credentials below.clone(), "chief-3", None, credentials 50);
        reads_little!(list_credentials below.clone(), "admin", Some(&at_group), credentials 50);
        reads_little!(list_credentials below, "admin", Some(&at_top), credentials 50);
    }
    let activities = pb::ListActivitiesRequest::default;
    reads_little!(list_activities activities(), "admin", None, activities 50);
    reads_little!(list_activities activities(), "member-7", None, activities 50);
    reads_little!(list_activities activities(), "chief-7", None, activities 50);
    reads_little!(list_activities activities(), "member-7", Some(&at_workspace), activities 1);
    reads_little!(list_activities activities(), "member-7", Some(&at_identity), activities 50);
    let from_the_first = pb::ListActivitiesRequest {
        order_by: text("time"),
        ..activities()
    };
    reads_little!(list_activities from_the_first.clone(), "admin", None, activities 50);
    reads_little!(list_activities from_the_first.clone(), "chief-7", None, activities 50);
    reads_little!(list_activities from_the_first, "member-7", Some(&at_identity), activities 50);
    let by_actor = pb::ListActivitiesRequest {
        actor: text("user:dev/actor-17"),
        ..activities()
    };
    reads_little!(list_activities by_actor, "admin", None, activities 50);
    let below = pb::ListActivitiesRequest {
        include_descendants: true,
        ..activities()
    };
    reads_little!(list_activities below.clone(), "admin", Some(&at_group), activities 50);
    reads_little!(list_activities below, "admin", Some(&at_top), activities 50);
    assert!(much.is_empty(), "read too much:\n{}", much.join("\n"));
}

#[tokio::test]
async fn what_is_hidden_is_not_read() {
    let identity = ManagedIdentityId::from_uuid(Uuid::from_u128(7)).to_string();
    let workspace = WorkspaceId::from_uuid(Uuid::from_u128(7)).to_string();
    let account = ServiceAccountId::from_uuid(Uuid::from_u128(7)).to_string();
    let job = JobId::from_uuid(Uuid::from_u128(7)).to_string();
    let database = Database::create().await;
    let pool = database.another_pool(1);
    eventlog::migrate(&pool, Some(&projector::MIGRATIONS))
        .await
        .expect("tables");
    let rows = HIDDEN
        .replace("{identity}", &identity)
        .replace("{workspace}", &workspace)
        .replace("{account}", &account)
        .replace("{job}", &job);
    sqlx::raw_sql(AssertSqlSafe(rows))
        .execute(&pool)
        .await
        .expect("rows");
    let rpc = DirectoryRpc::new(pool.clone());
    let credentials = pb::ListCredentialsRequest::default;
    let of_identity = pb::ListCredentialsRequest {
        managed_identity_id: identity.clone(),
        ..credentials()
    };
    let of_job = pb::ListCredentialsRequest {
        job_id: job,
        ..credentials()
    };
    let of_both = pb::ListCredentialsRequest {
        managed_identity_id: identity.clone(),
        ..of_job.clone()
    };
    let of_account = pb::ListCredentialsRequest {
        service_account_id: account,
        ..credentials()
    };
    let about = |id: &str| pb::ListActivitiesRequest {
        affected_id: text(id),
        ..Default::default()
    };
    // PostgreSQL has not counted yet what there is now, and then it has.
    for counted in [false, true] {
        if counted {
            let analyzed = sqlx::query("ANALYZE").execute(&pool).await;
            analyzed.expect("analyzed");
        }
        // With how many of the identity's rows they see: of those, a page shows 50.
        for (caller, seen) in [("nobody", 0), ("one", 4), ("hundred", 50), ("all", 50)] {
            macro_rules! reads_only_what_is_seen {
                ($method:ident $message:expr, $field:ident $found:expr) => {
                    let before = read(&pool, &TABLES).await;
                    let asked = format!("{caller} {:?}", $message);
                    let answer = rpc.$method(request($message.clone(), caller, None)).await;
                    let found = answer.expect("an answer").into_inner().$field.len();
                    let rows = read(&pool, &TABLES).await - before;
                    eprintln!("{rows} rows for {found}: {asked}");
                    assert_eq!(found, $found, "{asked}");
                    assert!(rows < ENOUGH, "{rows} rows: {asked}");
                };
            }
            reads_only_what_is_seen!(list_credentials of_identity, credentials seen);
            for hidden in [&of_job, &of_account, &of_both] {
                reads_only_what_is_seen!(list_credentials hidden, credentials 0);
            }
            reads_only_what_is_seen!(list_activities about(&identity), activities seen);
            reads_only_what_is_seen!(list_activities about(&workspace), activities 0);
        }
    }
}

#[tokio::test]
async fn what_lies_below_a_group_is_found_without_reading_the_rest() {
    let group = GroupId::from_uuid(Uuid::from_u128(7));
    let workspaces = (0..500).map(|n| WorkspaceId::from_uuid(Uuid::from_u128(n)).to_string());
    let database = Database::create().await;
    let pool = database.another_pool(1);
    eventlog::migrate(&pool, None).await.expect("tables");
    sqlx::query(FACTS)
        .bind(group.to_string())
        .bind(workspaces.collect::<Vec<_>>())
        .execute(&pool)
        .await
        .expect("rows");
    sqlx::query("ANALYZE facts")
        .execute(&pool)
        .await
        .expect("analyzed");
    let hierarchy = Hierarchy::new(pool.clone());
    let before = read(&pool, &FACTS_ALONE).await;
    let members = hierarchy.facts_below(group.into(), MEMBERS).await;
    assert_eq!(members.expect("read").len(), 500);
    let after_members = read(&pool, &FACTS_ALONE).await;
    let below = hierarchy.below(group.into()).await;
    assert_eq!(below.expect("read").len(), 500);
    let after_all = read(&pool, &FACTS_ALONE).await;
    let (of_members, of_all) = (after_members - before, after_all - after_members);
    assert!(
        of_members < 2_000 && of_all < 2_000,
        "{of_members}, {of_all}"
    );
}

#[tokio::test]
async fn a_query_that_takes_longer_than_an_rpc_may_is_too_late() {
    let database = Database::create().await;
    let pool = database.another_pool(1);
    let limited = sqlx::query("SET statement_timeout = 1")
        .execute(&pool)
        .await;
    limited.expect("limited");
    let slow = sqlx::query("SELECT pg_sleep(60)").execute(&pool).await;
    let status = edge::status::database(&slow.expect_err("too late"));
    assert_eq!(
        (status.code(), edge::status::reason(&status).as_str()),
        (tonic::Code::DeadlineExceeded, "DEADLINE_EXCEEDED")
    );
}

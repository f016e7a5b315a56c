//! Search: by name and path, and only what one may see.

use e2e::refusal::{invalid, not_found};
use e2e::{User, World};
use proto::access::v1::Role;
use proto::directory::v1 as directory;
use proto::directory::v1::child::Kind;
use proto::directory::v1::{Match, NamespaceKind};

fn path(child: &directory::Child) -> String {
    match &child.kind {
        Some(Kind::Group(group)) => group.path.clone(),
        Some(Kind::Workspace(workspace)) => workspace.path.clone(),
        None => String::new(),
    }
}

/// All pages of what is found, by path.
async fn finds(user: &User, request: directory::SearchNamespacesRequest) -> Vec<String> {
    let (mut found, mut page_token) = (vec![], String::new());
    loop {
        let request = directory::SearchNamespacesRequest {
            page_size: 2,
            page_token,
            ..request.clone()
        };
        let page = user.asks(request).await.expect("a page");
        found.extend(page.namespaces.iter().map(path));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return found;
        }
    }
}

fn holding(query: &str) -> directory::SearchNamespacesRequest {
    directory::SearchNamespacesRequest {
        query: query.to_owned(),
        ..Default::default()
    }
}

fn beginning(query: &str) -> directory::SearchNamespacesRequest {
    directory::SearchNamespacesRequest {
        r#match: Match::Prefix.into(),
        ..holding(query)
    }
}

async fn finds_identities(user: &User, query: &str, r#match: Match) -> Vec<String> {
    let request = directory::SearchManagedIdentitiesRequest {
        query: query.to_owned(),
        r#match: r#match.into(),
        ..Default::default()
    };
    let found = user.asks(request).await.expect("a page").managed_identities;
    let trns = found.into_iter().map(|identity| identity.trn);
    trns.map(|trn| trn.trim_start_matches("trn:managed_identity:").to_owned())
        .collect()
}

#[expect(clippy::too_many_lines, reason = "one request after the other")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_text_is_found_in_names_and_paths() {
    let world = World::start().await;
    let admin = world.admin();
    for group in ["acme", "acme/prod", "acme/prod-eu", "a_b", "axb"] {
        admin.creates_group(group).await;
    }
    for workspace in [
        "acme/prod/web",
        "acme/prod-eu/web",
        "acme/web-prod",
        "a_b/x",
    ] {
        admin.creates_workspace(workspace).await;
    }
    for (text, expected) in [
        (
            "prod",
            &[
                "acme/prod-eu",
                "acme/prod-eu/web",
                "acme/prod",
                "acme/prod/web",
                "acme/web-prod",
            ][..],
        ),
        ("PROD/W", &["acme/prod/web"]),
        (
            "acme/",
            &[
                "acme/prod-eu",
                "acme/prod-eu/web",
                "acme/prod",
                "acme/prod/web",
                "acme/web-prod",
            ],
        ),
        ("a_b", &["a_b", "a_b/x"]),
        ("%", &[]),
        ("\\", &[]),
        ("a%b", &[]),
        ("//", &[]),
        ("x", &["a_b/x", "axb"]),
        ("é", &[]),
    ] {
        assert_eq!(finds(&admin, holding(text)).await, expected, "{text}");
    }
    for (text, expected) in [
        ("prod", &["acme/prod-eu", "acme/prod"][..]),
        ("acme/prod/", &["acme/prod/web"]),
        (
            "Acme/P",
            [
                "acme/prod-eu",
                "acme/prod-eu/web",
                "acme/prod",
                "acme/prod/web",
            ]
            .as_slice(),
        ),
        ("eb", &[]),
        ("a_", &["a_b", "a_b/x"]),
    ] {
        let mut found = finds(&admin, beginning(text)).await;
        let mut expected = expected.to_vec();
        found.sort();
        expected.sort_unstable();
        assert_eq!(found, expected, "{text}");
    }
    let workspaces = directory::SearchNamespacesRequest {
        kind: NamespaceKind::Workspace.into(),
        group_id: "trn:group:acme/prod".to_owned(),
        ..Default::default()
    };
    assert_eq!(finds(&admin, workspaces).await, ["acme/prod/web"]);

    admin.creates_identity("acme/prod/deployer").await;
    admin.creates_identity("acme/reader").await;
    for (text, way, expected) in [
        (
            "",
            Match::Substring,
            &["acme/reader", "acme/prod/deployer"][..],
        ),
        ("d/dep", Match::Substring, &["acme/prod/deployer"]),
        ("prod", Match::Substring, &["acme/prod/deployer"]),
        ("read", Match::Prefix, &["acme/reader"]),
        ("acme/prod/d", Match::Prefix, &["acme/prod/deployer"]),
        ("eader", Match::Prefix, &[]),
    ] {
        assert_eq!(
            finds_identities(&admin, text, way).await,
            expected,
            "{text}"
        );
    }

    // What moves is at its new path at once, with everything below, and its identities.
    admin
        .moves_group("trn:group:acme/prod", "trn:group:a_b")
        .await;
    assert_eq!(finds(&admin, holding("prod/web")).await, ["a_b/prod/web"]);
    assert_eq!(finds(&admin, holding("acme/prod/")).await, [""; 0]);
    assert_eq!(
        finds_identities(&admin, "a_b", Match::Substring).await,
        ["a_b/prod/deployer"]
    );
    admin.deletes_group("trn:group:a_b/prod").await;
    assert_eq!(finds(&admin, holding("prod/web")).await, [""; 0]);
    assert_eq!(
        finds_identities(&admin, "deployer", Match::Substring).await,
        [""; 0]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_finds_only_what_one_may_see() {
    let world = World::start().await;
    let (admin, bob) = (world.admin(), world.user("bob"));
    for group in [
        "acme",
        "acme/team",
        "acme/team/deep",
        "acme/team-2",
        "other",
    ] {
        admin.creates_group(group).await;
    }
    admin.creates_identity("acme/team/deployer").await;
    admin.creates_identity("acme/above").await;
    assert_eq!(finds(&bob, holding("")).await, [""; 0]);
    admin
        .grants(&bob, Role::Viewer, "trn:group:acme/team")
        .await;
    admin
        .grants(&bob, Role::Owner, "trn:group:acme/team/deep")
        .await;
    let seen = ["acme/team", "acme/team/deep"];
    assert_eq!(finds(&bob, holding("")).await, seen);
    assert_eq!(finds(&bob, holding("acme")).await, seen, "not the way up");
    assert_eq!(finds(&bob, beginning("te")).await, ["acme/team"]);
    assert_eq!(
        finds_identities(&bob, "", Match::Substring).await,
        ["acme/team/deployer"]
    );
    let within = |group: &str| directory::SearchNamespacesRequest {
        group_id: group.to_owned(),
        ..Default::default()
    };
    assert_eq!(
        finds(&bob, within("trn:group:acme/team/deep")).await,
        ["acme/team/deep"]
    );
    not_found(bob.asks(within("trn:group:acme")).await);
    not_found(bob.asks(within("trn:group:nope")).await);
    let wrong = directory::SearchNamespacesRequest {
        query: "a".repeat(1_401),
        r#match: 9,
        kind: 9,
        ..Default::default()
    };
    invalid(bob.asks(wrong).await, &["query", "match", "kind"]);
    let wrong = directory::SearchManagedIdentitiesRequest {
        r#type: "gcp".to_owned(),
        ..Default::default()
    };
    invalid(bob.asks(wrong).await, &["type"]);
    // A token is for its own text.
    let first = directory::SearchNamespacesRequest {
        page_size: 1,
        ..holding("team")
    };
    let page_token = bob.asks(first).await.expect("a page").next_page_token;
    let other = directory::SearchNamespacesRequest {
        page_token,
        ..holding("deep")
    };
    invalid(bob.asks(other).await, &["page_token"]);
}

#[expect(clippy::too_many_lines, reason = "one request after the other")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_are_sorted_and_filtered_as_asked() {
    let world = World::start().await;
    let admin = world.admin();
    admin.creates_group("acme").await;
    for group in ["acme/b", "acme/a"] {
        admin.creates_group(group).await;
    }
    let web = admin.creates_workspace("acme/c").await;
    let children = async |order_by: &str, kind: NamespaceKind| {
        let (mut names, mut page_token) = (vec![], String::new());
        loop {
            let request = directory::ListChildrenRequest {
                group_id: "trn:group:acme".to_owned(),
                page_size: 1,
                page_token,
                order_by: order_by.to_owned(),
                kind: kind.into(),
                ..Default::default()
            };
            let page = admin.asks(request).await.expect("a page");
            names.extend(page.children.iter().map(e2e::user::child_name));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return names;
            }
        }
    };
    let any = NamespaceKind::Unspecified;
    assert_eq!(children("", any).await, ["a", "b", "c"]);
    assert_eq!(children("name desc", any).await, ["c", "b", "a"]);
    assert_eq!(children("create_time", any).await, ["b", "a", "c"]);
    assert_eq!(children("update_time desc", any).await, ["c", "a", "b"]);
    assert_eq!(children("", NamespaceKind::Group).await, ["a", "b"]);
    assert_eq!(children("", NamespaceKind::Workspace).await, ["c"]);
    let wrong = directory::ListChildrenRequest {
        order_by: "size".to_owned(),
        kind: 9,
        ..Default::default()
    };
    invalid(admin.asks(wrong).await, &["kind", "order_by"]);

    for identity in ["acme/two", "acme/a/one"] {
        admin.creates_identity(identity).await;
    }
    let identities = async |request: directory::ListManagedIdentitiesRequest| {
        let request = directory::ListManagedIdentitiesRequest {
            group_id: "trn:group:acme/a".to_owned(),
            ..request
        };
        let listed = admin
            .asks(request)
            .await
            .expect("a page")
            .managed_identities;
        let identities = listed
            .into_iter()
            .filter_map(|listed| listed.managed_identity);
        identities.map(|identity| identity.name).collect::<Vec<_>>()
    };
    let asked = directory::ListManagedIdentitiesRequest::default;
    assert_eq!(
        identities(directory::ListManagedIdentitiesRequest {
            order_by: "create_time".to_owned(),
            ..asked()
        })
        .await,
        ["two", "one"]
    );
    assert_eq!(
        identities(directory::ListManagedIdentitiesRequest {
            name_contains: "W".to_owned(),
            ..asked()
        })
        .await,
        ["two"]
    );
    assert_eq!(
        identities(directory::ListManagedIdentitiesRequest {
            r#type: "azure".to_owned(),
            ..asked()
        })
        .await,
        [""; 0]
    );

    // The workspaces of an identity, as far as one may see them.
    admin
        .assigns("trn:managed_identity:acme/two", &web.id)
        .await;
    let workspaces = directory::ListManagedIdentityWorkspacesRequest {
        managed_identity_id: "trn:managed_identity:acme/two".to_owned(),
        ..Default::default()
    };
    let listed = admin
        .asks(workspaces.clone())
        .await
        .expect("a page")
        .workspaces;
    assert_eq!(listed.len(), 1);
    assert_eq!(
        (&listed[0].path, &listed[0].id),
        (&"acme/c".to_owned(), &web.id)
    );
    let bob = world.user("bob");
    admin.grants(&bob, Role::Viewer, &web.id).await;
    not_found(bob.asks(workspaces).await);
}

//! Lists of memberships, teams and service accounts.

use e2e::refusal::{invalid, not_found};
use e2e::{User, World};
use proto::access::v1::{self as access, Role};
use proto::directory::v1 as directory;
use proto::identity::v1 as identity;
use proto::namespace::v1 as namespace;

fn user(user: &User) -> access::Principal {
    access::Principal {
        kind: Some(access::principal::Kind::User(user.principal().to_owned())),
    }
}

fn memberships(namespace: &str) -> directory::ListMembershipsRequest {
    directory::ListMembershipsRequest {
        namespace_id: namespace.to_owned(),
        ..Default::default()
    }
}

fn service_accounts(group: &str) -> directory::ListServiceAccountsRequest {
    directory::ListServiceAccountsRequest {
        group_id: group.to_owned(),
        ..Default::default()
    }
}

/// Id, path and whether it is inherited, and what overrides it.
fn brief(listed: &directory::DirectoryMembership) -> (String, String, bool, String) {
    (
        listed.membership.clone().expect("a membership").id,
        listed.namespace_path.clone(),
        listed.inherited,
        listed.overridden_by.clone(),
    )
}

/// What their owner answers.
async fn as_kept(user: &User, id: &str) -> Option<namespace::Membership> {
    let request = namespace::GetMembershipRequest {
        id: id.to_owned(),
        ..Default::default()
    };
    user.asks(request).await.expect("it is there").membership
}

/// `bob` is a member of `acme`, of the workspace below and of `other`; his team of `acme`; and whoever made `acme` owns it.
struct Members {
    world: World,
    acme: namespace::Group,
    web: namespace::Workspace,
    above: namespace::Membership,
    below: namespace::Membership,
    elsewhere: namespace::Membership,
    of_team: namespace::Membership,
}

impl Members {
    async fn start() -> Self {
        let world = World::start().await;
        let (admin, bob) = (world.admin(), world.user("bob"));
        let acme = admin.creates_group("acme").await;
        let web = admin.creates_workspace("acme/web").await;
        let other = admin.creates_group("other").await;
        let team = admin.creates_team("platform", &[&bob]).await;
        let above = admin.grants(&bob, Role::Viewer, &acme.id).await;
        let of_team = admin.grants_team(&team.id, Role::Deployer, &acme.id).await;
        let below = admin.grants(&bob, Role::Deployer, &web.id).await;
        let elsewhere = admin.grants(&bob, Role::Owner, &other.id).await;
        let changed = namespace::UpdateMembershipRequest {
            membership: Some(namespace::Membership {
                id: above.id.clone(),
                role: Role::Owner.into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        admin.asks(changed).await.expect("the role changes");
        Self {
            world,
            acme,
            web,
            above,
            below,
            elsewhere,
            of_team,
        }
    }
}

fn ids(answer: &directory::ListMembershipsResponse) -> Vec<String> {
    let ids = answer.memberships.iter().map(|listed| brief(listed).0);
    ids.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_a_member_and_what_overrides_it() {
    let members = Members::start().await;
    let Members {
        web,
        above,
        below,
        of_team,
        ..
    } = &members;
    let admin = members.world.admin();
    let all = admin.asks(memberships(&web.id)).await.expect("a list");
    let seen: Vec<_> = all.memberships.iter().map(brief).collect();
    let own = |id: &str| (id.to_owned(), "acme/web".to_owned(), false, String::new());
    let inherited = |id: &str, by: &str| (id.to_owned(), "acme".to_owned(), true, by.to_owned());
    // The admin made the group, and so owns it.
    let first = seen
        .iter()
        .find(|(id, ..)| *id != above.id && *id != below.id && *id != of_team.id);
    let first = first.expect("the admin's").0.clone();
    assert_eq!(
        seen,
        [
            own(&below.id),
            inherited(&of_team.id, ""),
            inherited(&first, ""),
            inherited(&above.id, &below.id),
        ]
    );
    for listed in all.memberships {
        let membership = listed.membership.expect("a membership");
        let kept = as_kept(&admin, &membership.id).await;
        assert_eq!(Some(membership), kept, "the same as its owner's");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memberships_are_narrowed_down_and_come_by_the_page() {
    let members = Members::start().await;
    let Members {
        web,
        above,
        below,
        of_team,
        ..
    } = &members;
    let (admin, bob, eve) = (
        members.world.admin(),
        members.world.user("bob"),
        members.world.user("eve"),
    );
    let only_own = directory::ListMembershipsRequest {
        exclude_inherited: true,
        ..memberships("trn:workspace:acme/web")
    };
    assert_eq!(
        ids(&bob.asks(only_own).await.expect("a list")),
        [below.id.as_str()]
    );
    let of_bob = directory::ListMembershipsRequest {
        principal: Some(user(&bob)),
        order_by: "create_time".to_owned(),
        ..memberships(&web.id)
    };
    let of_bob = ids(&admin.asks(of_bob).await.expect("a list"));
    assert_eq!(of_bob, [above.id.as_str(), below.id.as_str()]);
    let deployers = directory::ListMembershipsRequest {
        role: Role::Deployer.into(),
        ..memberships(&web.id)
    };
    let deployers = ids(&admin.asks(deployers).await.expect("a list"));
    assert_eq!(deployers, [below.id.as_str(), of_team.id.as_str()]);
    let by_team = directory::ListMembershipsRequest {
        principal: Some(access::Principal {
            kind: Some(access::principal::Kind::Team(
                "trn:team:platform".to_owned(),
            )),
        }),
        ..memberships(&web.id)
    };
    assert_eq!(
        ids(&admin.asks(by_team).await.expect("a list")),
        [of_team.id.as_str()]
    );

    // Each once, whatever the order and the pages.
    for order_by in [
        "",
        "principal",
        "principal desc",
        "create_time desc",
        "update_time",
    ] {
        let (mut turned, mut page_token) = (vec![], String::new());
        loop {
            let request = directory::ListMembershipsRequest {
                order_by: order_by.to_owned(),
                page_size: 1,
                page_token,
                ..memberships(&web.id)
            };
            let page = admin.asks(request).await.expect("a page");
            page_token = page.next_page_token.clone();
            turned.extend(ids(&page));
            if page_token.is_empty() {
                break;
            }
        }
        assert_eq!(turned.len(), 4, "{order_by}");
        turned.sort();
        turned.dedup();
        assert_eq!(turned.len(), 4, "{order_by}");
    }

    not_found(eve.asks(memberships(&members.acme.id)).await);
    let wrong = directory::ListMembershipsRequest {
        principal: Some(access::Principal { kind: None }),
        role: 9,
        order_by: "name".to_owned(),
        ..memberships(&web.id)
    };
    invalid(
        admin.asks(wrong).await,
        &["principal.kind", "role", "order_by"],
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_a_principal_is_a_member_as_far_as_one_sees() {
    let members = Members::start().await;
    let Members { web, elsewhere, .. } = &members;
    let (admin, bob, eve) = (
        members.world.admin(),
        members.world.user("bob"),
        members.world.user("eve"),
    );
    let everywhere = directory::ListPrincipalMembershipsRequest {
        principal: Some(user(&bob)),
        ..Default::default()
    };
    let places = |answer: directory::ListPrincipalMembershipsResponse| -> Vec<String> {
        answer
            .memberships
            .iter()
            .map(|listed| brief(listed).1)
            .collect()
    };
    let by_bob = places(bob.asks(everywhere.clone()).await.expect("a list"));
    assert_eq!(by_bob, ["acme", "acme/web", "other"]);
    assert_eq!(
        places(eve.asks(everywhere.clone()).await.expect("a list")),
        [""; 0]
    );
    admin.grants(&eve, Role::Viewer, &web.id).await;
    assert_eq!(
        places(eve.asks(everywhere.clone()).await.expect("a list")),
        ["acme/web"]
    );
    let end = namespace::DeleteMembershipRequest {
        id: elsewhere.id.clone(),
        ..Default::default()
    };
    admin.asks(end).await.expect("it ends");
    let left = places(admin.asks(everywhere).await.expect("a list"));
    assert_eq!(left, ["acme", "acme/web"]);
    let nobody = directory::ListPrincipalMembershipsRequest::default();
    invalid(admin.asks(nobody).await, &["principal"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn teams_and_who_is_in_them() {
    let world = World::start().await;
    let (admin, bob, eve) = (world.admin(), world.user("bob"), world.user("eve"));
    let platform = admin.creates_team("platform", &[&eve, &bob]).await;
    admin.creates_team("data", &[&eve]).await;
    let list = async |request: directory::ListTeamsRequest| {
        let answer = bob.asks(request).await.expect("a list");
        let names = answer.teams.iter().map(|team| team.name.clone());
        (names.collect::<Vec<_>>(), answer)
    };
    let (names, answer) = list(directory::ListTeamsRequest::default()).await;
    assert_eq!(names, ["data", "platform"]);
    let get = namespace::GetTeamRequest {
        id: platform.id.clone(),
        ..Default::default()
    };
    let kept = bob.asks(get).await.expect("the team").team;
    assert_eq!(
        answer.teams.get(1).cloned(),
        kept,
        "the same as its owner's"
    );
    assert_eq!(answer.teams[1].member_count, 2);

    let (of_bob, _) = list(directory::ListTeamsRequest {
        member: bob.principal().to_owned(),
        ..Default::default()
    })
    .await;
    assert_eq!(of_bob, ["platform"]);
    let (named, _) = list(directory::ListTeamsRequest {
        name_contains: "AT".to_owned(),
        order_by: "create_time".to_owned(),
        ..Default::default()
    })
    .await;
    assert_eq!(named, ["platform", "data"]);
    let (first, page) = list(directory::ListTeamsRequest {
        page_size: 1,
        ..Default::default()
    })
    .await;
    let (second, last) = list(directory::ListTeamsRequest {
        page_size: 1,
        page_token: page.next_page_token,
        ..Default::default()
    })
    .await;
    assert_eq!(
        (first, second),
        (vec!["data".to_owned()], vec!["platform".to_owned()])
    );
    assert_eq!(last.next_page_token, "");

    let members = async |team: &str| {
        let request = directory::ListTeamMembersRequest {
            team_id: team.to_owned(),
            ..Default::default()
        };
        let answer = bob.asks(request).await?;
        let users = answer.members.iter().map(|member| member.user.clone());
        Ok::<Vec<String>, tonic::Status>(users.collect())
    };
    let both = [bob.principal(), eve.principal()];
    assert_eq!(members("trn:team:platform").await.expect("a list"), both);
    let leaves = namespace::RemoveTeamMemberRequest {
        team_id: platform.id.clone(),
        user: eve.principal().to_owned(),
        ..Default::default()
    };
    admin.asks(leaves).await.expect("eve leaves");
    assert_eq!(
        members(&platform.id).await.expect("a list"),
        [bob.principal()]
    );

    not_found(members("trn:team:none").await);
    invalid(members("trn:group:platform").await, &["team_id"]);
    let wrong = directory::ListTeamsRequest {
        member: "bob".to_owned(),
        order_by: "size".to_owned(),
        page_size: -1,
        ..Default::default()
    };
    invalid(admin.asks(wrong).await, &["order_by", "member"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_accounts_of_a_group_and_those_inherited() {
    let world = World::start().await;
    let (admin, bob) = (world.admin(), world.user("bob"));
    admin.creates_group("acme").await;
    let team = admin.creates_group("acme/team").await;
    let ci = admin.creates_service_account("acme/ci").await;
    let bot = admin.creates_service_account("acme/team/bot").await;
    admin.grants(&bob, Role::Viewer, &team.id).await;
    let changed = identity::UpdateServiceAccountRequest {
        service_account: Some(identity::ServiceAccount {
            id: ci.id.clone(),
            description: "runs the pipelines".to_owned(),
            trust_policies: ci.trust_policies.clone(),
            ..Default::default()
        }),
        ..Default::default()
    };
    admin.asks(changed).await.expect("it changes");

    let names = |answer: &directory::ListServiceAccountsResponse| -> Vec<(String, bool, String)> {
        let brief = |listed: &directory::DirectoryServiceAccount| {
            let name = listed.service_account.clone().expect("an account").name;
            (name, listed.inherited, listed.group_path.clone())
        };
        answer.service_accounts.iter().map(brief).collect()
    };
    let (own, above) = (
        ("bot".to_owned(), false, "acme/team".to_owned()),
        ("ci".to_owned(), true, "acme".to_owned()),
    );
    let all = bob.asks(service_accounts(&team.id)).await.expect("a list");
    assert_eq!(names(&all), [own.clone(), above.clone()]);
    for listed in all.service_accounts {
        let account = listed.service_account.expect("an account");
        let get = identity::GetServiceAccountRequest {
            id: account.id.clone(),
            ..Default::default()
        };
        let kept = admin.asks(get).await.expect("it is there").service_account;
        assert_eq!(Some(account), kept, "the same as its owner's");
    }
    for (request, expected) in [
        (
            directory::ListServiceAccountsRequest {
                exclude_inherited: true,
                ..service_accounts("trn:group:acme/team")
            },
            vec![own.clone()],
        ),
        (
            directory::ListServiceAccountsRequest {
                name_contains: "C".to_owned(),
                ..service_accounts(&team.id)
            },
            vec![above.clone()],
        ),
        (
            directory::ListServiceAccountsRequest {
                order_by: "name desc".to_owned(),
                ..service_accounts(&team.id)
            },
            vec![above, own],
        ),
    ] {
        let answer = bob.asks(request).await.expect("a list");
        assert_eq!(names(&answer), expected);
    }
    let gone = identity::DeleteServiceAccountRequest {
        id: bot.id,
        ..Default::default()
    };
    admin.asks(gone).await.expect("it is deleted");
    let left = bob.asks(service_accounts(&team.id)).await.expect("a list");
    assert_eq!(names(&left).len(), 1);
    not_found(bob.asks(service_accounts("trn:group:acme")).await);
    let wrong = directory::ListServiceAccountsRequest {
        order_by: "group".to_owned(),
        ..service_accounts(&team.id)
    };
    invalid(bob.asks(wrong).await, &["order_by"]);
}

//! Aliases: another name of an identity in another group, which presents the data, the rules and the subject of its
//! source.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bed::{eventually, unique_id};
use e2e::refusal::{invalid, not_found, obstacles, refused};
use e2e::user::{access_rule, alias, assignment, aws_identity, credential, limit_update};
use e2e::{Service, User, World, relying_party};
use futures::future::join;
use prost::Message as _;
use proto::access::v1::Role;
use proto::directory::v1 as directory;
use proto::identity::v1 as identity;
use proto::identity::v1::setup_instructions::Cloud;
use proto::identity::v1::{EndingAssignment, ManagedIdentity};
use proto::issuer::v1 as issuer;
use proto::namespace::v1 as namespace;
use tonic::{Code, Status};

use crate::masks::creates_kubernetes;

/// An identity of `lender`, its alias in `borrower`, and a workspace of `borrower/team` that has it.
struct Scene {
    admin: User,
    source: ManagedIdentity,
    alias: ManagedIdentity,
    web: namespace::Workspace,
}

impl Scene {
    async fn set(world: &World) -> Self {
        let admin = world.admin();
        for path in ["lender", "borrower", "borrower/team"] {
            admin.creates_group(path).await;
        }
        let source = admin.creates_identity("lender/deployer").await;
        let alias = admin.creates_alias("borrower/shared", &source.id).await;
        let web = admin.creates_workspace("borrower/team/web").await;
        admin.assigns(&alias.id, &web.id).await;
        Self {
            admin,
            source,
            alias,
            web,
        }
    }

    /// The end of the alias's assignment.
    fn ending(&self) -> [EndingAssignment; 1] {
        [EndingAssignment {
            workspace_id: self.web.id.clone(),
            workspace_path: "borrower/team/web".to_owned(),
            managed_identity_id: self.alias.id.clone(),
        }]
    }

    async fn is_assigned_to_nothing(&self) {
        eventually(async || {
            let request = directory::ListWorkspaceManagedIdentitiesRequest {
                workspace_id: self.web.id.clone(),
                include_unusable: true,
                ..Default::default()
            };
            let has = self.admin.asks(request).await.expect("listed");
            match has.managed_identities.as_slice() {
                [] => Ok(()),
                has => Err(format!("{has:?}")),
            }
        })
        .await;
    }
}

async fn get(user: &User, id: &str) -> Result<ManagedIdentity, Status> {
    let request = identity::GetManagedIdentityRequest {
        id: id.to_owned(),
        ..Default::default()
    };
    let got = user.asks(request).await?;
    Ok(got.managed_identity.expect("the identity"))
}

fn delete(id: &str) -> identity::DeleteManagedIdentityRequest {
    identity::DeleteManagedIdentityRequest {
        id: id.to_owned(),
        ..Default::default()
    }
}

fn delete_alias(id: &str) -> identity::DeleteManagedIdentityAliasRequest {
    identity::DeleteManagedIdentityAliasRequest {
        id: id.to_owned(),
        ..Default::default()
    }
}

fn update(of: &ManagedIdentity) -> identity::UpdateManagedIdentityRequest {
    identity::UpdateManagedIdentityRequest {
        managed_identity: Some(of.clone()),
        ..Default::default()
    }
}

async fn setup(user: &User, id: &str) -> Option<identity::SetupInstructions> {
    let request = identity::GetSetupInstructionsRequest {
        id: id.to_owned(),
        ..Default::default()
    };
    user.asks(request).await.expect("got").setup_instructions
}

/// What an alias shows of its source.
fn presented(of: &ManagedIdentity) -> ManagedIdentity {
    ManagedIdentity {
        description: of.description.clone(),
        configuration: of.configuration.clone(),
        token_settings: of.token_settings,
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_presents_its_source_as_that_changes() {
    let world = World::start().await;
    let scene = Scene::set(&world).await;
    let (admin, source, alias) = (&scene.admin, &scene.source, &scene.alias);
    assert_ne!(alias.id, source.id);
    assert_eq!(alias.trn, "trn:managed_identity:borrower/shared");
    assert_eq!(
        (&alias.alias_source_id, source.alias_source_id.as_str()),
        (&source.id, "")
    );
    assert_eq!(presented(alias), presented(source));
    assert_eq!(get(admin, &alias.trn).await.expect("got"), *alias);
    assert_eq!(
        setup(admin, &alias.id).await,
        setup(admin, &source.id).await
    );

    let wanted = ManagedIdentity {
        description: "Deploys".to_owned(),
        configuration: Some(e2e::user::aws("arn:aws:iam::123456789012:role/other")),
        token_settings: Some(identity::TokenSettings {
            subject_mode: identity::SubjectMode::IdentityAndStage.into(),
            ..Default::default()
        }),
        ..source.clone()
    };
    let updated = admin.asks(update(&wanted)).await.expect("updated");
    let source = updated.managed_identity.expect("the source");
    let changed = get(admin, &alias.id).await.expect("got");
    assert_eq!(presented(&changed), presented(&source));
    assert_eq!((&changed.name, &changed.etag), (&alias.name, &alias.etag));

    let job = admin.opens_job(&scene.web.id).await;
    let asker = admin.with_token(&job.token);
    let request = issuer::IssueCredentialRequest {
        consistency_token: updated.consistency_token,
        ..credential(&alias.trn)
    };
    let issued = asker.asks(request).await.expect("issued");
    let verified = relying_party::verify(&world.issuer_url(), "aws", &issued.token).await;
    let claims = verified.expect("a stranger verifies it").claims;
    assert_eq!(claims["sub"], format!("{}:apply", source.id));
    let jobs = asker
        .asks(issuer::ListJobManagedIdentitiesRequest::default())
        .await
        .expect("listed");
    let [has] = jobs.managed_identities.as_slice() else {
        panic!("one: {jobs:?}")
    };
    assert_eq!((&has.id, has.path.as_str()), (&alias.id, "borrower/shared"));
    assert_eq!(has.configuration, source.configuration);
    // The source itself is none of the job's.
    not_found(admin.asks_as(&job.token, &source.id).await);
    // On the record it is by the name that the job used.
    let recorded = world.log(Service::Issuer).await.into_iter().rev();
    let mut recorded = recorded.filter_map(|event| {
        let event = issuer::Event::decode(&event.event_type, &event.payload);
        match event.expect("an event") {
            issuer::Event::CredentialIssued(event) => Some(event),
            _ => None,
        }
    });
    let recorded = recorded.next().expect("it is on the record");
    assert_eq!(recorded.managed_identity_id, alias.id);
    assert_eq!(recorded.subject, format!("{}:apply", source.id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_it_was_issued_is_found_by_its_source_for_who_may_see_it() {
    let world = World::start().await;
    let scene = Scene::set(&world).await;
    let (admin, source, alias) = (&scene.admin, &scene.source.id, &scene.alias.id);
    let [lender, both] = ["lender", "both"].map(|name| world.user(name));
    for user in [&lender, &both] {
        admin.grants(user, Role::Viewer, "trn:group:lender").await;
    }
    admin.grants(&both, Role::Viewer, &scene.web.id).await;
    let own = admin.creates_workspace("lender/own").await.id;
    let mut jobs = vec![admin.opens_job(&scene.web.id).await];
    admin.assigns(source, &own).await;
    jobs.push(admin.opens_job(&own).await);
    let (mut tokens, mut consistency_token) = (Vec::new(), String::new());
    for (job, identity) in jobs.iter().zip([alias, source]) {
        let issued = admin.asks_as(&job.token, identity).await;
        let issued = issued.expect("a credential");
        tokens.push(issued.token_id);
        consistency_token = issued.consistency_token;
    }
    let [through_alias, of_source] = tokens.try_into().expect("two");

    let all = || directory::ListCredentialsRequest {
        consistency_token: consistency_token.clone(),
        ..Default::default()
    };
    let by_id = |id: &str| directory::ListCredentialsRequest {
        managed_identity_id: id.to_owned(),
        ..all()
    };
    let of_parent = |id: &str| directory::ListCredentialsRequest {
        parent_id: id.to_owned(),
        ..all()
    };
    let found = async |user: &User, request: directory::ListCredentialsRequest| {
        // A row to a page.
        let (mut found, mut page_token) = (vec![], String::new());
        loop {
            let request = directory::ListCredentialsRequest {
                page_size: 1,
                page_token,
                ..request.clone()
            };
            let page = user.asks(request).await.expect("a page");
            found.extend(page.credentials.into_iter().map(|row| row.token_id));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return found;
            }
        }
    };
    let everything = [of_source.as_str(), &through_alias];
    for request in [by_id(source), of_parent(source)] {
        for user in [admin, &both] {
            assert_eq!(found(user, request.clone()).await, everything);
        }
        // The other one lies where this user sees nothing.
        assert_eq!(found(&lender, request).await, [of_source.as_str()]);
    }
    assert_eq!(found(admin, by_id(alias)).await, [through_alias.as_str()]);
    let of_both = directory::ListCredentialsRequest {
        managed_identity_id: source.clone(),
        ..of_parent(alias)
    };
    assert_eq!(found(admin, of_both).await, [through_alias.as_str()]);
    let of_job = directory::ListCredentialsRequest {
        job_id: jobs[0].job.id.clone(),
        ..by_id(source)
    };
    let listed = admin.asks(of_job).await.expect("a page").credentials;
    let [row] = listed.as_slice() else {
        panic!("one: {listed:?}")
    };
    assert_eq!((&row.managed_identity_id, &row.subject), (alias, source));
    // Long after the alias.
    let deleted = admin.asks(identity::DeleteManagedIdentityAliasRequest {
        force: true,
        ..delete_alias(alias)
    });
    let request = directory::ListCredentialsRequest {
        consistency_token: deleted.await.expect("deleted").consistency_token,
        ..by_id(source)
    };
    assert_eq!(found(admin, request).await, everything);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rules_of_its_source_let_its_jobs_have_it() {
    let world = World::start().await;
    let scene = Scene::set(&world).await;
    let admin = &scene.admin;
    let job = admin.opens_job(&scene.web.id).await;
    let issued = admin.asks_as(&job.token, &scene.alias.id).await;
    issued.expect("a credential");

    let made = admin.asks(access_rule(&scene.source.id, &["dev/bob"]));
    let made = made.await.expect("made");
    let rule = made.access_rule.expect("the rule");
    let listed = admin.asks(identity::ListAccessRulesRequest {
        managed_identity_id: scene.alias.id.clone(),
        ..Default::default()
    });
    let [listed] = listed
        .await
        .expect("listed")
        .access_rules
        .try_into()
        .expect("one");
    assert_eq!(listed.condition, rule.condition);
    assert_eq!(
        (&listed.managed_identity_id, listed.trn.as_str()),
        (&scene.source.id, "")
    );
    let request = issuer::IssueCredentialRequest {
        consistency_token: made.consistency_token.clone(),
        ..credential(&scene.alias.id)
    };
    refused(
        admin.with_token(&job.token).asks(request).await,
        Code::FailedPrecondition,
        "RULES_REFUSED",
    );
    let explained = admin.asks(issuer::ExplainCredentialRequest {
        workspace_id: scene.web.id.clone(),
        managed_identity_id: scene.alias.id.clone(),
        job_id: job.job.id.clone(),
        consistency_token: made.consistency_token,
        ..Default::default()
    });
    let explained = explained.await.expect("explained");
    assert!(!explained.allowed);
    assert_eq!(explained.rules[0].access_rule_id, rule.id);
    // It has none of its own.
    refused(
        admin.asks(access_rule(&scene.alias.id, &["dev/bob"])).await,
        Code::FailedPrecondition,
        "IS_ALIAS",
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_makes_it_may_make_identities_in_both_groups_and_who_deletes_it_in_either() {
    let world = World::start().await;
    let (admin, bob) = (world.admin(), world.user("bob"));
    for path in ["lender", "borrower"] {
        admin.creates_group(path).await;
    }
    let source = admin.creates_identity("lender/deployer").await;
    let request = || alias("borrower/shared", &source.id);
    not_found(bob.asks(request()).await);
    admin
        .grants(&bob, Role::Deployer, "trn:group:borrower")
        .await;
    not_found(bob.asks(request()).await);
    let at_lender = admin.grants(&bob, Role::Viewer, "trn:group:lender").await;
    let denied = |outcome| {
        drop(refused::<()>(
            outcome,
            Code::PermissionDenied,
            "PERMISSION_DENIED",
        ));
    };
    denied(bob.asks(request()).await.map(drop));
    let set_role = async |role: Role| {
        let request = namespace::UpdateMembershipRequest {
            membership: Some(namespace::Membership {
                role: role.into(),
                etag: String::new(),
                ..at_lender.clone()
            }),
            ..Default::default()
        };
        admin
            .asks(request)
            .await
            .expect("changed")
            .consistency_token
    };
    let token = set_role(Role::Deployer).await;
    let made = bob.asks(identity::CreateManagedIdentityAliasRequest {
        consistency_token: token,
        ..request()
    });
    let made = made.await.expect("made").managed_identity.expect("it");

    // Carol has a role where the source is, Dave where the alias is; a viewer's is not enough, and says that there is one.
    let (carol, dave) = (world.user("carol"), world.user("dave"));
    for (user, group) in [(&carol, "trn:group:lender"), (&dave, "trn:group:borrower")] {
        not_found(user.asks(delete_alias(&made.id)).await);
        let viewer = admin.grants(user, Role::Viewer, group).await;
        // The role has to get to the other service first.
        eventually(async || match user.asks(delete_alias(&made.id)).await {
            Err(status) if status.code() == Code::NotFound => Err(status.to_string()),
            outcome => {
                denied(outcome.map(drop));
                Ok(())
            }
        })
        .await;
        let raised = namespace::UpdateMembershipRequest {
            membership: Some(namespace::Membership {
                role: Role::Deployer.into(),
                ..viewer
            }),
            ..Default::default()
        };
        let raised = admin.asks(raised).await.expect("raised");
        let deleted = user.asks(identity::DeleteManagedIdentityAliasRequest {
            validate_only: true,
            consistency_token: raised.consistency_token,
            ..delete_alias(&made.id)
        });
        assert_eq!(deleted.await.expect("allowed").planned_events.len(), 1);
    }
    // By its id alone, for who does not see its group, and is not told of that.
    let tried = carol.asks(identity::DeleteManagedIdentityAliasRequest {
        validate_only: true,
        ..delete_alias(&made.id)
    });
    let planned = &tried.await.expect("allowed").planned_events[0].value;
    let planned = identity::ManagedIdentityAliasDeleted::decode(planned.as_slice());
    let planned = planned.expect("the event");
    assert_eq!(planned.managed_identity_id, made.id);
    assert_eq!(
        (planned.group_id, planned.name),
        (String::new(), String::new())
    );
    carol.asks(delete_alias(&made.id)).await.expect("deleted");
    not_found(get(&admin, &made.id).await);
    let again = bob.asks(request()).await.expect("made").managed_identity;
    // Dave deletes it like any identity of his group.
    let again = again.expect("it").id;
    dave.asks(delete(&again)).await.expect("deleted");
    not_found(carol.asks(delete_alias(&again)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_alias_is_refused() {
    let world = World::start().await;
    let scene = Scene::set(&world).await;
    let admin = &scene.admin;
    let group = admin.creates_group("lender/below").await;
    let refusals = [
        (
            alias("borrower/team/again", &scene.alias.id),
            "ALIAS_OF_ALIAS",
        ),
        (alias("lender/again", &scene.source.id), "INHERITED_ANYWAY"),
        (
            alias("lender/below/again", &scene.source.trn),
            "INHERITED_ANYWAY",
        ),
    ];
    for (request, reason) in refusals {
        refused(admin.asks(request).await, Code::FailedPrecondition, reason);
    }
    let taken = |outcome| drop(refused::<()>(outcome, Code::AlreadyExists, "NAME_TAKEN"));
    taken(
        admin
            .asks(alias("borrower/shared", &scene.source.id))
            .await
            .map(drop),
    );
    taken(admin.asks(aws_identity("borrower/shared")).await.map(drop));

    invalid(
        admin.asks(alias("borrower/A", &scene.source.id)).await,
        &["name"],
    );
    invalid(admin.asks(alias("borrower/a", "")).await, &["source_id"]);
    invalid(admin.asks(alias("borrower/a", "?")).await, &["source_id"]);
    invalid(
        admin.asks(alias("borrower/a", &group.id)).await,
        &["source_id"],
    );
    invalid(admin.asks(alias("", &scene.source.id)).await, &["group_id"]);
    not_found(
        admin
            .asks(alias("borrower/a", "trn:managed_identity:lender/none"))
            .await,
    );
    not_found(admin.asks(alias("none/a", &scene.source.id)).await);
    invalid(admin.asks(delete_alias(&scene.source.id)).await, &["id"]);
    invalid(admin.asks(delete_alias("")).await, &["id"]);
    not_found(
        admin
            .asks(delete_alias("trn:managed_identity:borrower/none"))
            .await,
    );

    let is_alias = |outcome| drop(refused::<()>(outcome, Code::FailedPrecondition, "IS_ALIAS"));
    is_alias(admin.asks(update(&scene.alias)).await.map(drop));
    let elsewhere = identity::MoveManagedIdentityRequest {
        id: scene.alias.id.clone(),
        new_group_id: "trn:group:borrower/team".to_owned(),
        ..Default::default()
    };
    is_alias(admin.asks(elsewhere).await.map(drop));
    let stale = identity::DeleteManagedIdentityAliasRequest {
        etag: "v999".to_owned(),
        ..delete_alias(&scene.alias.id)
    };
    refused(admin.asks(stale).await, Code::Aborted, "ETAG_MISMATCH");

    let set = admin
        .asks(limit_update("managed_identity_aliases", 1))
        .await;
    let over = identity::CreateManagedIdentityAliasRequest {
        consistency_token: set.expect("set").consistency_token,
        ..alias("borrower/more", &scene.source.id)
    };
    refused(
        admin.asks(over).await,
        Code::FailedPrecondition,
        "ALIAS_LIMIT",
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_request_is_carried_out_once_and_a_tried_one_never() {
    let world = World::start().await;
    let admin = world.admin();
    for path in ["lender", "borrower"] {
        admin.creates_group(path).await;
    }
    let source = admin.creates_identity("lender/deployer").await;
    let tried = admin.asks(identity::CreateManagedIdentityAliasRequest {
        validate_only: true,
        ..alias("borrower/shared", &source.id)
    });
    let tried = tried.await.expect("valid");
    assert_eq!(
        tried.planned_events[0].type_url,
        "type.googleapis.com/tharsis.identity.v1.ManagedIdentityAliasCreated"
    );
    not_found(get(&admin, "trn:managed_identity:borrower/shared").await);
    let request = identity::CreateManagedIdentityAliasRequest {
        request_id: unique_id().to_string(),
        ..alias("borrower/shared", &source.id)
    };
    let made = admin.asks(request.clone()).await.expect("made");
    assert_eq!(admin.asks(request).await.expect("made before"), made);
    let id = made.managed_identity.expect("it").id;
    let request = identity::DeleteManagedIdentityAliasRequest {
        request_id: unique_id().to_string(),
        ..delete_alias(&id)
    };
    let deleted = admin.asks(request.clone()).await.expect("deleted");
    assert_eq!(admin.asks(request).await.expect("deleted before"), deleted);
    let count = world.asked_for(Service::Identity).await.len();
    assert_eq!(count, 3, "the source, the alias and its end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_counts_with_its_sources_type_and_is_masked_like_any_identity() {
    let world = World::start().await;
    let scene = Scene::set(&world).await;
    let admin = &scene.admin;
    let own = admin.creates_identity("borrower/own").await;
    let status = refused(
        admin.asks(assignment(&own.id, &scene.web.id)).await,
        Code::FailedPrecondition,
        "TYPE_TAKEN",
    );
    assert_eq!(
        obstacles(&status),
        [("TYPE_TAKEN".to_owned(), scene.alias.id.clone())]
    );
    let cluster = creates_kubernetes(admin, "borrower/cluster").await;
    admin.assigns(&cluster.id, &scene.web.id).await;
    // Not where it is not inherited, whatever its source.
    admin.creates_group("aside").await;
    let aside = admin.creates_workspace("aside/web").await;
    refused(
        admin.asks(assignment(&scene.alias.id, &aside.id)).await,
        Code::FailedPrecondition,
        "NOT_INHERITED",
    );
    let mut request = e2e::user::mask(&scene.web.id);
    request.mask.get_or_insert_default().hidden =
        Some(identity::mask::Hidden::Type("aws".to_owned()));
    let masked = admin.asks(request).await.expect("made");
    assert_eq!(masked.hidden_assignments, scene.ending());
    refused(
        admin.asks(assignment(&scene.alias.id, &scene.web.id)).await,
        Code::FailedPrecondition,
        "MASKED",
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_its_source_says_what_it_takes_and_takes_that() {
    let world = World::start().await;
    let scene = Scene::set(&world).await;
    let admin = &scene.admin;
    let job = admin.opens_job(&scene.web.id).await;
    let issued = admin.asks_as(&job.token, &scene.alias.id).await;
    issued.expect("a credential");
    let refusal = refused(
        admin.asks(delete(&scene.source.id)).await,
        Code::FailedPrecondition,
        "MANAGED_IDENTITY_ASSIGNED",
    );
    assert_eq!(
        obstacles(&refusal),
        [("ASSIGNED".to_owned(), "borrower/team/web".to_owned())]
    );
    assert!(
        refusal
            .message()
            .ends_with("borrower/team/web (through the alias borrower/shared)"),
        "{refusal:?}"
    );
    refused(
        admin.asks(delete_alias(&scene.alias.id)).await,
        Code::FailedPrecondition,
        "MANAGED_IDENTITY_ASSIGNED",
    );
    let by_force = |validate_only| identity::DeleteManagedIdentityRequest {
        force: true,
        validate_only,
        ..delete(&scene.source.id)
    };
    let tried = admin.asks(by_force(true)).await.expect("valid");
    assert_eq!(tried.ending_assignments, scene.ending());
    // The namespaces' service tells of it too, as soon as it knows.
    eventually(async || {
        let tried = admin.asks(namespace::DeleteGroupRequest {
            id: "trn:group:lender".to_owned(),
            force: true,
            validate_only: true,
            ..Default::default()
        });
        let ending = tried.await.expect("valid").ending_assignments;
        if ending == scene.ending() {
            Ok(())
        } else {
            Err(format!("{ending:?}"))
        }
    })
    .await;

    let gone = admin.asks(by_force(false)).await.expect("deleted");
    // At once, whether the alias has gone yet or not.
    let request = issuer::IssueCredentialRequest {
        consistency_token: gone.consistency_token,
        ..credential(&scene.alias.id)
    };
    let outcome = admin.with_token(&job.token).asks(request).await;
    let status = outcome.expect_err("its source is gone");
    assert!(
        matches!(status.code(), Code::NotFound | Code::FailedPrecondition),
        "{status:?}"
    );
    eventually(async || match get(admin, &scene.alias.id).await {
        Err(status) if status.code() == Code::NotFound => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    scene.is_assigned_to_nothing().await;
    // Its name is free again.
    eventually(async || {
        let made = admin.asks(aws_identity("borrower/shared")).await;
        made.map(drop).map_err(|status| status.to_string())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_either_group_is_its_end() {
    let world = World::start().await;
    let scene = Scene::set(&world).await;
    let admin = &scene.admin;
    // Of another one, in another group of the borrower's.
    let other = admin.creates_identity("lender/other").await;
    admin.creates_group("borrower/dark").await;
    let dark = admin.creates_alias("borrower/dark/shared", &other.id).await;
    admin.deletes_group("trn:group:borrower/dark").await;
    let request = directory::ListManagedIdentityAliasesRequest {
        managed_identity_id: other.id.clone(),
        ..Default::default()
    };
    eventually(async || {
        let listed = admin.asks(request.clone()).await.expect("listed").aliases;
        match listed.as_slice() {
            [] => Ok(()),
            [listed] => Err(format!("{listed:?}")),
            _ => panic!("{dark:?} is the only one"),
        }
    })
    .await;
    get(admin, &other.id).await.expect("its source is there");
    admin.deletes_group("trn:group:lender").await;
    scene.is_assigned_to_nothing().await;
    not_found(get(admin, &scene.alias.id).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_directory_shows_it_where_it_is() {
    let world = World::start().await;
    let scene = Scene::set(&world).await;
    let (admin, bob) = (&scene.admin, world.user("bob"));
    let renewed = ManagedIdentity {
        description: "Deploys".to_owned(),
        ..scene.source.clone()
    };
    let updated = admin.asks(update(&renewed)).await.expect("updated");
    let shown = get(admin, &scene.alias.id).await.expect("got");
    let list = directory::ListManagedIdentitiesRequest {
        group_id: "trn:group:borrower/team".to_owned(),
        r#type: "aws".to_owned(),
        consistency_token: updated.consistency_token.clone(),
        ..Default::default()
    };
    let listed = admin.asks(list).await.expect("listed").managed_identities;
    let [listed] = listed.as_slice() else {
        panic!("one: {listed:?}")
    };
    assert!(listed.inherited);
    assert_eq!(listed.managed_identity.as_ref(), Some(&shown));
    let search = directory::SearchManagedIdentitiesRequest {
        query: "row".to_owned(),
        ..Default::default()
    };
    let found = admin.asks(search).await.expect("found").managed_identities;
    assert_eq!(found, std::slice::from_ref(&shown));
    let aliases = directory::ListManagedIdentityAliasesRequest {
        managed_identity_id: scene.source.id.clone(),
        ..Default::default()
    };
    let of_source = admin.asks(aliases.clone()).await.expect("listed").aliases;
    assert_eq!(of_source[0].managed_identity.as_ref(), Some(&shown));
    assert_eq!(of_source[0].group_path, "borrower");
    // Who sees only where its source is, sees that there is one.
    admin.grants(&bob, Role::Viewer, "trn:group:lender").await;
    eventually(async || match bob.asks(aliases.clone()).await {
        Err(status) if status.code() == Code::NotFound => Err(status.to_string()),
        listed => {
            let listed = listed.expect("listed").aliases;
            let id_only = ManagedIdentity {
                id: scene.alias.id.clone(),
                ..Default::default()
            };
            assert_eq!(listed[0].managed_identity, Some(id_only));
            assert_eq!(listed[0].group_path, "");
            Ok(())
        }
    })
    .await;
    // What became of the aliases is part of what happened to the source, for those who may see it.
    let activities = directory::ListActivitiesRequest {
        resource_id: scene.source.id.clone(),
        ..Default::default()
    };
    let of_aliases = async |user: &User| {
        let listed = user.asks(activities.clone()).await.expect("listed");
        let activities = listed.activities.into_iter();
        let of_alias = activities.filter(|activity| activity.event_type.contains("Alias"));
        of_alias.count()
    };
    assert_eq!((of_aliases(admin).await, of_aliases(&bob).await), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_gets_it_while_its_source_is_deleted() {
    let world = World::start().await;
    let admin = world.admin();
    for path in ["lender", "borrower"] {
        admin.creates_group(path).await;
    }
    let web = admin.creates_workspace("borrower/web").await;
    let (mut assigned, mut deleted) = (0, 0);
    for round in 0..24 {
        let source = admin.creates_identity(&format!("lender/n{round}")).await;
        let path = format!("borrower/n{round}");
        let made = admin.creates_alias(&path, &source.id).await;
        let (assignment, deletion) = join(
            admin.asks(assignment(&made.id, &web.id)),
            admin.asks(delete(&source.id)),
        )
        .await;
        match (assignment, deletion) {
            (Ok(_), deletion) => {
                let why = "MANAGED_IDENTITY_ASSIGNED";
                refused(deletion, Code::FailedPrecondition, why);
                let force = identity::DeleteManagedIdentityAliasRequest {
                    force: true,
                    ..delete_alias(&made.id)
                };
                admin.asks(force).await.expect("deleted");
                assigned += 1;
            }
            (assignment, Ok(_)) => {
                not_found(assignment);
                deleted += 1;
            }
            both => panic!("neither: {both:?}"),
        }
    }
    assert_eq!(assigned + deleted, 24);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_its_source_does_not_tell_where_hidden_things_are() {
    let world = World::start().await;
    let scene = Scene::set(&world).await;
    let (admin, carol) = (&scene.admin, world.user("carol"));
    admin.grants(&carol, Role::Owner, "trn:group:lender").await;
    let refusal = refused(
        carol.asks(delete(&scene.source.id)).await,
        Code::FailedPrecondition,
        "MANAGED_IDENTITY_ASSIGNED",
    );
    let (web, alias) = (&scene.web.id, &scene.alias.id);
    assert_eq!(
        obstacles(&refusal),
        [("ASSIGNED".to_owned(), web.to_owned())]
    );
    let named = format!("{web} (through the alias {alias})");
    assert!(refusal.message().ends_with(&named), "{refusal:?}");
    let ids_only = scene.ending().map(|ending| EndingAssignment {
        workspace_path: String::new(),
        ..ending
    });
    let tried = carol.asks(identity::DeleteManagedIdentityRequest {
        force: true,
        validate_only: true,
        ..delete(&scene.source.id)
    });
    assert_eq!(tried.await.expect("valid").ending_assignments, ids_only);
    eventually(async || {
        let tried = carol.asks(namespace::DeleteGroupRequest {
            id: "trn:group:lender".to_owned(),
            force: true,
            validate_only: true,
            ..Default::default()
        });
        let ending = tried.await.expect("valid").ending_assignments;
        if ending == ids_only {
            Ok(())
        } else {
            Err(format!("{ending:?}"))
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn page_tokens_say_no_more_than_the_rows() {
    let world = World::start().await;
    let scene = Scene::set(&world).await;
    let (admin, bob) = (&scene.admin, world.user("bob"));
    admin.creates_group("third").await;
    let seen = admin.creates_alias("third/seen", &scene.source.id).await;
    admin.creates_group("fourth").await;
    let other = admin.creates_alias("fourth/hidden", &scene.source.id).await;
    for place in ["trn:group:lender", "trn:group:third"] {
        admin.grants(&bob, Role::Viewer, place).await;
    }
    let of_source = async |page_size, order_by: &str, page_token| {
        let request = directory::ListManagedIdentityAliasesRequest {
            managed_identity_id: scene.source.id.clone(),
            page_size,
            page_token,
            order_by: order_by.to_owned(),
            ..Default::default()
        };
        bob.asks(request).await
    };
    eventually(async || match of_source(0, "", String::new()).await {
        Ok(_) => Ok(()),
        Err(status) => Err(status.to_string()),
    })
    .await;
    let id = |page: &directory::ListManagedIdentityAliasesResponse| {
        let identity = page.aliases[0].managed_identity.clone();
        identity.expect("an identity").id
    };
    let parts = |token: &str| {
        let decoded = URL_SAFE_NO_PAD.decode(token).expect("a token");
        let text = String::from_utf8(decoded).expect("a text");
        let parts: [String; 3] = {
            let parts: Vec<_> = text.split('\n').map(str::to_owned).collect();
            parts.try_into().expect("a query, a key and an id")
        };
        parts
    };
    let mut hidden = [&scene.alias, &other].map(|alias| alias.id.clone());
    hidden.sort();
    let [one, last] = &hidden;
    for order_by in ["", "name desc", "create_time", "update_time desc"] {
        let page = async |token| of_source(1, order_by, token).await.expect("a page");
        let first = page(String::new()).await;
        assert_eq!(id(&first), seen.id, "{order_by}");
        let [query, key, of] = parts(&first.next_page_token);
        assert_eq!((of.as_str(), key.is_empty()), (seen.id.as_str(), false));
        let then = page(first.next_page_token).await;
        assert_eq!(id(&then), *one, "{order_by}");
        assert_eq!(
            parts(&then.next_page_token),
            [query.clone(), String::new(), one.clone()]
        );
        let rest = page(then.next_page_token).await;
        assert_eq!(
            (id(&rest), rest.next_page_token),
            (last.clone(), String::new())
        );
        // Wherever one says that a page begins, what is hidden stands where it did.
        let time = |year: i32| (i64::from(year - 1970) * 31_556_952_000_000).to_string();
        let keys = if order_by.contains("name") || order_by.is_empty() {
            ["!", "borrowed", "zzz"].map(str::to_owned)
        } else {
            [1990, 2025, 2300].map(time)
        };
        for key in keys {
            for id in ["", one, last] {
                let token = URL_SAFE_NO_PAD.encode([&query, &key, id].join("\n"));
                let page = of_source(0, order_by, token).await.expect("a page");
                let ids = page.aliases.into_iter().map(|alias| {
                    let identity = alias.managed_identity.expect("an identity");
                    identity.id
                });
                let ids: Vec<_> = ids.filter(|id| *id != seen.id).collect();
                assert_eq!(ids, hidden, "{order_by} {key} {id}");
            }
        }
    }
    // One goes on behind what is gone by now, too.
    let first = of_source(2, "", String::new()).await.expect("a page");
    let gone = if *one == scene.alias.id {
        &scene.alias
    } else {
        &other
    };
    let deleted = admin.asks(identity::DeleteManagedIdentityAliasRequest {
        force: true,
        ..delete_alias(&gone.id)
    });
    deleted.await.expect("deleted");
    eventually(async || {
        let rest = of_source(2, "", first.next_page_token.clone()).await;
        let rest = rest.map_err(|status| status.to_string())?;
        let all = of_source(0, "", String::new()).await;
        let all = all.map_err(|status| status.to_string())?;
        match (rest.aliases.len(), all.aliases.len()) {
            (1, 2) if id(&rest) == *last => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_account_of_its_source_is_only_those_learn_who_may() {
    let world = World::start().await;
    let scene = Scene::set(&world).await;
    let (admin, bob) = (&scene.admin, world.user("bob"));
    let account = admin.creates_service_account("lender/ci").await;
    admin.creates_group("lender/team").await;
    let stands_for = |account: &identity::ServiceAccount| {
        identity::configuration::Type::Tharsis(identity::TharsisConfiguration {
            service_account_id: account.id.clone(),
        })
    };
    let source = admin
        .registers("lender/team/as-ci", stands_for(&account))
        .await;
    let alias = admin.creates_alias("borrower/as-ci", &source.id).await;
    for place in ["trn:group:borrower", "trn:group:lender/team"] {
        admin.grants(&bob, Role::Viewer, place).await;
    }
    let told = async |user: &User, id: &str| {
        let said = setup(user, id).await.expect("instructions");
        let Some(Cloud::Tharsis(setup)) = said.cloud else {
            panic!("instructions for a service account: {said:?}")
        };
        assert_eq!(setup.service_account_id, account.id);
        assert_eq!(said.warnings, [""; 0]);
        assert_eq!(
            said.terraform.contains("\"lender\""),
            !setup.service_account_trn.is_empty()
        );
        setup.service_account_trn
    };
    // What is inherited is known; what lies elsewhere is there all the same.
    assert_eq!(told(&bob, &source.id).await, account.trn);
    assert_eq!(told(&bob, &alias.id).await, "");
    assert_eq!(told(admin, &alias.id).await, account.trn);
}

//! Lists: order, pages, what is inherited, and what one may see.

use e2e::refusal::invalid;
use e2e::user::child_name;
use e2e::{User, World};
use proto::access::v1::Role;
use proto::directory::v1 as directory;

/// All pages, by name; each full but the last.
async fn children_by_page(user: &User, group_id: &str, page_size: i32) -> Vec<Vec<String>> {
    let (mut pages, mut page_token) = (vec![], String::new());
    loop {
        let request = directory::ListChildrenRequest {
            group_id: group_id.to_owned(),
            page_size,
            page_token,
            ..Default::default()
        };
        let page = user.asks(request).await.expect("a page");
        pages.push(page.children.iter().map(child_name).collect());
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return pages;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_follow_each_other() {
    let world = World::start().await;
    let (admin, bob) = (world.admin(), world.user("bob"));
    let hasty = admin.in_a_hurry();
    admin.creates_group("acme").await;
    for name in ["e", "b"] {
        hasty.creates_group(&format!("acme/{name}")).await;
    }
    for name in ["d", "a", "f", "c"] {
        hasty.creates_workspace(&format!("acme/{name}")).await;
    }
    let acme = admin.creates_group("acme/g").await.parent_id;
    let by_three: [&[&str]; 3] = [&["a", "b", "c"], &["d", "e", "f"], &["g"]];
    assert_eq!(children_by_page(&admin, &acme, 3).await, by_three);
    assert_eq!(
        children_by_page(&admin, "trn:group:acme", 7).await.len(),
        1,
        "no empty last page"
    );
    assert_eq!(children_by_page(&admin, &acme, 0).await[0].len(), 7);
    assert_eq!(children_by_page(&admin, &acme, 1_000).await[0].len(), 7);

    // A token is for its own list; what is made meanwhile behind it is seen.
    let request = directory::ListChildrenRequest {
        group_id: acme.clone(),
        page_size: 2,
        ..Default::default()
    };
    let first = admin.asks(request.clone()).await.expect("a page");
    let wrong = directory::ListChildrenRequest {
        page_token: first.next_page_token.clone(),
        ..Default::default()
    };
    invalid(admin.asks(wrong).await, &["page_token"]);
    let wrong = directory::ListManagedIdentitiesRequest {
        group_id: acme.clone(),
        page_token: first.next_page_token.clone(),
        ..Default::default()
    };
    invalid(admin.asks(wrong).await, &["page_token"]);
    admin.creates_workspace("acme/bb").await;
    let second = directory::ListChildrenRequest {
        page_token: first.next_page_token,
        ..request
    };
    let second = admin.asks(second).await.expect("a page").children;
    assert_eq!(
        second.iter().map(child_name).collect::<Vec<_>>(),
        ["bb", "c"]
    );

    // At the top, one sees where one is a member; an administrator sees all.
    for name in ["x", "y", "z"] {
        let group = admin.creates_group(name).await;
        if name != "y" {
            admin.grants(&bob, Role::Viewer, &group.id).await;
        }
    }
    assert_eq!(children_by_page(&bob, "", 1).await.concat(), ["x", "z"]);
    assert_eq!(
        children_by_page(&admin, "", 1).await.concat(),
        ["acme", "x", "y", "z"]
    );
    assert!(world.user("nobody").lists_children("").await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inherited_identities_come_after_ones_own() {
    let world = World::start().await;
    let admin = world.admin();
    for path in ["acme", "acme/team", "acme/team/below"] {
        admin.creates_group(path).await;
    }
    for path in [
        "acme/a",
        "acme/z",
        "acme/team/m",
        "acme/team/below/z",
        "acme/team/below/b",
    ] {
        admin.creates_identity(path).await;
    }
    let (mut seen, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = directory::ListManagedIdentitiesRequest {
            group_id: "trn:group:acme/team/below".to_owned(),
            page_size: 2,
            page_token,
            ..Default::default()
        };
        let page = admin.asks(request).await.expect("a page");
        for listed in page.managed_identities {
            let identity = listed.managed_identity.expect("it");
            assert_eq!(listed.inherited, listed.group_path != "acme/team/below");
            assert_eq!(
                identity.trn,
                format!(
                    "trn:managed_identity:{}/{}",
                    listed.group_path, identity.name
                )
            );
            seen.push(format!("{}/{}", listed.group_path, identity.name));
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(
        seen,
        [
            "acme/team/below/b",
            "acme/team/below/z",
            "acme/team/m",
            "acme/a",
            "acme/z"
        ]
    );
    let own = directory::ListManagedIdentitiesRequest {
        group_id: "trn:group:acme/team/below".to_owned(),
        exclude_inherited: true,
        ..Default::default()
    };
    assert_eq!(
        admin
            .asks(own)
            .await
            .expect("a page")
            .managed_identities
            .len(),
        2
    );
}

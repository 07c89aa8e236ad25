// swift-tools-version: 6.1
// SPDX-License-Identifier: Apache-2.0

import PackageDescription

let package = Package(
    name: "swift-fibers-benchmarks",
    traits: [.trait(name: "BoostContext"), .default(enabledTraits: ["BoostContext"])],
    dependencies: [
        .package(name: "swift-fibers", path: "..", traits: [.init(name: "BoostContext", condition: .when(traits: ["BoostContext"]))])
    ],
    targets: [
        .executableTarget(name: "micro", dependencies: [.product(name: "Fibers", package: "swift-fibers")]),
        .executableTarget(
            name: "echo",
            dependencies: [.product(name: "Fibers", package: "swift-fibers"), .product(name: "FiberNet", package: "swift-fibers")]),
    ]
)

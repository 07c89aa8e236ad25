// swift-tools-version: 6.1
// SPDX-License-Identifier: Apache-2.0
import PackageDescription

// Which context switch is compiled in. With the trait, Boost.Context's fcontext, as long as Boost is older than 1.87 (see
// `fiber_context_backend.h`); without it, the assembly in `asm/`, which needs no system package. The assembly is always built (a package
// cannot say "unless this trait"), the choice is made by `#if` in C.
let boost: [CSetting] = [.define("FIBER_BOOST_CONTEXT", .when(traits: ["BoostContext"]))]

// Set by Scripts/test alone: as flags on the command line they would reach the dependencies too.
let warningsAreErrors = Context.environment["FIBERS_WARNINGS"] == "error"

let c: [CSetting] = boost + (warningsAreErrors ? [.unsafeFlags(["-Wall", "-Wextra", "-Werror"])] : [])

let strict: [SwiftSetting] =
    [
        .enableUpcomingFeature("ExistentialAny"),
        .enableUpcomingFeature("InternalImportsByDefault"),
        .enableUpcomingFeature("MemberImportVisibility"),
    ] + (warningsAreErrors ? [.unsafeFlags(["-warnings-as-errors"])] : [])

let package = Package(
    name: "swift-fibers",
    products: [
        .library(name: "Fibers", targets: ["Fibers"]),
        .library(name: "FiberNet", targets: ["FiberNet"]),
        .executable(name: "Echo", targets: ["Echo"]),
        .executable(name: "EchoUDP", targets: ["EchoUDP"]),
        .executable(name: "Stress", targets: ["Stress"]),
        .executable(name: "Pipe", targets: ["Pipe"]),
        .executable(name: "Pipeline", targets: ["Pipeline"]),
    ],
    traits: [
        .trait(name: "BoostContext", description: "Switch with Boost.Context (libboost_context) instead of the assembly in asm/."),
        .default(enabledTraits: ["BoostContext"]),
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-system", from: "1.4.0")
    ],
    targets: [
        .target(
            name: "CFiberContext", path: "asm", exclude: ["tests"], cSettings: c,
            linkerSettings: [.linkedLibrary("boost_context", .when(traits: ["BoostContext"]))]),
        .target(name: "CFiber", dependencies: ["CFiberContext"], cSettings: c),
        .target(name: "Fibers", dependencies: ["CFiber"], swiftSettings: strict),
        .target(
            name: "FiberNet", dependencies: ["Fibers", "CFiber", .product(name: "SystemPackage", package: "swift-system")],
            swiftSettings: strict),
        .executableTarget(name: "Echo", dependencies: ["Fibers", "FiberNet"], path: "Examples/Echo", swiftSettings: strict),
        .executableTarget(name: "EchoUDP", dependencies: ["Fibers", "FiberNet"], path: "Examples/EchoUDP", swiftSettings: strict),
        .executableTarget(
            name: "Stress", dependencies: ["Fibers", "FiberNet"], path: "Examples/Stress", swiftSettings: strict),
        .executableTarget(name: "Pipe", dependencies: ["Fibers", "FiberNet"], path: "Examples/Pipe", swiftSettings: strict),
        .executableTarget(name: "Pipeline", dependencies: ["Fibers", "FiberNet"], path: "Examples/Pipeline", swiftSettings: strict),
        // Interposes malloc and the system calls that can run out of something, for the test binary alone.
        .target(name: "CFaults", path: "Tests/CFaults", cSettings: c),
        // Backends that prove the seam below the driver: one that completes requests later, and a simulated world.
        .target(name: "TestBackends", dependencies: ["Fibers", "CFiber"], path: "Tests/TestBackends", swiftSettings: strict),
        .testTarget(
            name: "FibersTests", dependencies: ["Fibers", "CFiber", "CFiberContext", "CFaults", "TestBackends"], swiftSettings: strict),
        .testTarget(name: "FiberNetTests", dependencies: ["FiberNet", "CFiber", "CFaults", "TestBackends"], swiftSettings: strict),
    ]
)

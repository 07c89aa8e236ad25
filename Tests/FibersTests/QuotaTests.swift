// SPDX-License-Identifier: Apache-2.0

// How many workers a runtime has by default: what the control groups of both versions allow, read from files that the tests write, and FIBERS_WORKERS.

import CFiber
import Fibers
import Glibc
import Testing

/// A folder with the files of /proc/self and /sys/fs/cgroup that a machine might have; removed at the end.
private struct FakeMachine: ~Copyable {
    let root: String
    /// All that was made in there.
    private var paths: Set<String> = []

    init(groups: String, mounts: String?, files: [String: String]) {
        var template = Array("/tmp/fibers-quota-XXXXXX".utf8CString)
        root = String(cString: mkdtemp(&template)!)
        write(groups, "/proc/self/cgroup")
        if let mounts { write(mounts, "/proc/self/mountinfo") }
        for (path, text) in files { write(text, path) }
    }

    private mutating func write(_ text: String, _ path: String) {
        var folder = ""
        for name in path.split(separator: "/").dropLast() {
            folder += "/" + name
            if paths.insert(folder).inserted { mkdir(root + folder, 0o700) }
        }
        paths.insert(path)
        let file = fopen(root + path, "w")!
        fputs(text, file)
        fclose(file)
    }

    var quota: Int32 { cfiber_cpu_quota_below(root) }

    /// Files first, then the folders that they stood in, which are empty by then.
    deinit {
        for path in paths.sorted(by: { $0.utf8.count > $1.utf8.count }) { remove(root + path) }
        rmdir(root)
    }
}

private let unlimited = Int32.max

/// A limit of version 1 in the folder of a group.
private func v1(_ folder: String, _ quota: String, _ period: String = "100000") -> [String: String] {
    [folder + "/cpu.cfs_quota_us": quota + "\n", folder + "/cpu.cfs_period_us": period + "\n"]
}

private func together(_ files: [String: String]...) -> [String: String] { files.reduce(into: [:]) { $0.merge($1) { $1 } } }

extension KernelTests {
    @Suite struct QuotaTests {
        private static let v1Mounts = """
            23 1 8:1 / / rw,relatime - ext4 /dev/root rw
            31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
            32 31 0:29 / /sys/fs/cgroup/cpuset rw,relatime shared:4 - cgroup cgroup rw,cpuset
            33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:5 - cgroup cgroup rw,cpu,cpuacct

            """
        private static let v2Mounts = "31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"

        // Version 1.

        @Test func quotaOfVersion1_isRoundedUp() {
            let machine = FakeMachine(
                groups: "3:cpuset:/\n2:cpu,cpuacct:/job\n", mounts: Self.v1Mounts, files: v1("/sys/fs/cgroup/cpu,cpuacct/job", "250000"))
            #expect(machine.quota == 3)
        }

        @Test func quotaOfVersion1_isNone_whenItIsMinusOne() {
            let machine = FakeMachine(
                groups: "2:cpu,cpuacct:/job\n", mounts: Self.v1Mounts, files: v1("/sys/fs/cgroup/cpu,cpuacct/job", "-1"))
            #expect(machine.quota == unlimited)
        }

        @Test func leastQuotaOfVersion1_counts_whenGroupsAroundHaveOnes() {
            let place = "/sys/fs/cgroup/cpu,cpuacct"
            for (outer, middle, inner, least) in [
                ("-1", "200000", "500000", 2), ("100000", "-1", "-1", 1), ("900000", "800000", "700000", 7),
            ] {
                let machine = FakeMachine(
                    groups: "2:cpu,cpuacct:/a/b/c\n", mounts: Self.v1Mounts,
                    files: together(v1(place + "/a", outer), v1(place + "/a/b", middle), v1(place + "/a/b/c", inner)))
                #expect(machine.quota == least, "\(outer) \(middle) \(inner)")
            }
        }

        @Test func quotaOfAnotherController_isNotLookedAt_whenItsNameBeginsAlike() {
            let machine = FakeMachine(
                groups: "3:cpuset,cpuacct:/job\n", mounts: Self.v1Mounts, files: v1("/sys/fs/cgroup/cpu,cpuacct/job", "100000"))
            #expect(machine.quota == unlimited)
        }

        @Test func quotaOfVersion1_isFound_whenTheGroupsTopIsMounted() {
            // A container of Docker without a namespace for control groups: the group named is the host's, the mount shows it as its top.
            let machine = FakeMachine(
                groups: "2:cpu:/docker/4f/inner\n",
                mounts: "33 31 0:30 /docker/4f /sys/fs/cgroup/cpu ro,relatime master:5 - cgroup cgroup rw,cpu\n",
                files: together(v1("/sys/fs/cgroup/cpu", "400000"), v1("/sys/fs/cgroup/cpu/inner", "150000")))
            #expect(machine.quota == 2)
        }

        @Test(arguments: ["/not/there", "/../../outside"])
        func quotaOfTheTop_counts_whenTheGroupIsNotBelowTheMount(_ group: String) {
            let machine = FakeMachine(
                groups: "2:cpu,cpuacct:\(group)\n", mounts: Self.v1Mounts, files: v1("/sys/fs/cgroup/cpu,cpuacct", "200000", "50000"))
            #expect(machine.quota == 4)
        }

        @Test func mountThatHoldsTheGroup_counts_whenAnotherPartIsMountedToo() {
            let machine = FakeMachine(
                groups: "2:cpu:/job\n",
                mounts: """
                    40 31 0:30 /other /mnt/other\\040part rw - cgroup cgroup rw,cpu
                    33 31 0:30 / /mnt/with\\040blank rw - cgroup cgroup rw,cpu

                    """,
                files: together(v1("/mnt/other part", "100000"), v1("/mnt/with blank/job", "300000")))
            #expect(machine.quota == 3)
        }

        @Test(arguments: ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"])
        func quotaOfVersion1_isFoundInTheUsualPlaces_whenMountsAreHidden(_ place: String) {
            let machine = FakeMachine(groups: "2:cpu,cpuacct:/job\n", mounts: nil, files: v1(place + "/job", "200000"))
            #expect(machine.quota == 2)
        }

        // Version 2, and both.

        @Test(arguments: [
            ("150000 100000", 2), ("max 100000", unlimited), ("5 100000", 1), ("", unlimited), ("what 1", unlimited), ("100 0", unlimited),
        ])
        func quotaOfVersion2_isRoundedUp_orNone(_ text: String, _ quota: Int32) {
            let machine = FakeMachine(groups: "0::/job\n", mounts: Self.v2Mounts, files: ["/sys/fs/cgroup/job/cpu.max": text + "\n"])
            #expect(machine.quota == quota)
        }

        @Test func leastQuotaOfVersion2_counts_whenGroupsAroundHaveOnes() {
            let machine = FakeMachine(
                groups: "0::/a/b\n", mounts: Self.v2Mounts,
                files: ["/sys/fs/cgroup/a/cpu.max": "300000 100000\n", "/sys/fs/cgroup/a/b/cpu.max": "max 100000\n"])
            #expect(machine.quota == 3)
        }

        @Test func quotaOfVersion2_isFound_whenMountsAreHidden() {
            let machine = FakeMachine(groups: "0::/\n", mounts: nil, files: ["/sys/fs/cgroup/cpu.max": "100000 100000\n"])
            #expect(machine.quota == 1)
        }

        @Test func leastOfBothVersions_counts_inHybridMode() {
            let mounts = Self.v1Mounts + "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
            for (one, two, least) in [("200000", "max", 2), ("-1", "300000", 3), ("200000", "100000", 1)] {
                let machine = FakeMachine(
                    groups: "2:cpu,cpuacct:/job\n1:name=systemd:/x\n0::/service\n", mounts: mounts,
                    files: together(
                        v1("/sys/fs/cgroup/cpu,cpuacct/job", one), ["/sys/fs/cgroup/unified/service/cpu.max": two + " 100000\n"]))
                #expect(machine.quota == least, "\(one) \(two)")
            }
        }

        @Test func quota_isNone_whenNothingCanBeRead() {
            let machine = FakeMachine(groups: "", mounts: nil, files: [:])
            #expect(machine.quota == unlimited)
            #expect(cfiber_cpu_quota_below("/nowhere") == unlimited)
        }

        @Test func quotaOfThisProcess_isAtLeastOne() { #expect(cfiber_cpu_quota() >= 1) }

        // The environment.

        #if compiler(>=6.2)
            @Test func emptyVariable_isUnset_whenWorkersAreCounted() async {
                await #expect(processExitsWith: .success) {
                    reportingErrors {
                        unsetenv("FIBERS_WORKERS")
                        let unset = try FiberRuntime.run { FiberRuntime.workerCount }
                        setenv("FIBERS_WORKERS", "", 1)
                        #expect(try FiberRuntime.run { FiberRuntime.workerCount } == unset)
                        setenv("FIBERS_WORKERS", "3", 1)
                        #expect(try FiberRuntime.run { FiberRuntime.workerCount } == 3)
                    }
                }
            }

            @Test func variableThatIsNoNumber_isMisuse() async {
                let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
                    reportingErrors {
                        setenv("FIBERS_WORKERS", "many", 1)
                        try FiberRuntime.run {}
                    }
                }
                expectMessage(result, "FIBERS_WORKERS must be a number from 1 to 1,024; it is \"many\"")
            }
        #endif
    }
}

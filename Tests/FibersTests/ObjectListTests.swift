// SPDX-License-Identifier: Apache-2.0

// The list behind waits that may be given up in any order: the order that it keeps, and what leaving costs.

import Fibers
import Testing

/// Counts how often the list looks at its elements.
private final class Element: ListElement {
    let number: Int
    private let looks: Box<Int>
    private var stored = ListLinks<Element>()

    init(_ number: Int, _ looks: Box<Int>) {
        self.number = number
        self.looks = looks
    }

    var links: ListLinks<Element> {
        get {
            looks.value += 1
            return stored
        }
        set {
            looks.value += 1
            stored = newValue
        }
    }
}

extension KernelTests {
    @Suite struct ObjectListTests {
        @Test(arguments: [10, 10_000])
        func remove_looksAtTheNeighboursAlone_howeverLongTheListIs(_ count: Int) {
            let looks = Box(0)
            var list = ObjectList<Element>()
            let elements = (0..<count).map { Element($0, looks) }
            for element in elements { list.append(element) }
            var most = 0
            // From both ends, and from the middle outwards.
            let order = [0, count - 1] + stride(from: count / 2, to: 1, by: -1)
            for index in order {
                looks.value = 0
                list.remove(elements[index])
                most = max(most, looks.value)
            }
            #expect(most <= 8, "\(most) looks for one that leaves")
            #expect(list.count == count - order.count)
            while list.popFirst() != nil {}
        }

        @Test func order_isThatOfArrival_whenOthersLeave() {
            let looks = Box(0)
            var generator = SeededGenerator(seed: 14)
            for _ in 0..<200 {
                var list = ObjectList<Element>()
                var model: [Element] = []
                for number in 0..<Int.random(in: 1...30, using: &generator) {
                    switch Int.random(in: 0...3, using: &generator) {
                    case 0 where !model.isEmpty:
                        let index = Int.random(in: model.indices, using: &generator)
                        let leaving = model.remove(at: index)
                        list.remove(leaving)
                        // It has left already.
                        list.remove(leaving)
                    case 1 where !model.isEmpty:
                        #expect(list.popFirst() === model.removeFirst())
                    default:
                        let element = Element(number, looks)
                        model.append(element)
                        list.append(element)
                    }
                    #expect(list.count == model.count && list.first === model.first)
                }
                var rest: [Int] = []
                while let element = list.popFirst() { rest.append(element.number) }
                #expect(rest == model.map(\.number))
            }
        }

        @Test func element_isReleased_whenItHasLeft() {
            let looks = Box(0)
            var list = ObjectList<Element>()
            weak var gone: Element?
            do {
                let first = Element(1, looks)
                let second = Element(2, looks)
                gone = second
                list.append(first)
                list.append(second)
                list.append(Element(3, looks))
                list.remove(second)
            }
            #expect(gone == nil)
            #expect(list.popFirst()?.number == 1 && list.popFirst()?.number == 3 && list.popFirst() == nil)
        }
    }
}

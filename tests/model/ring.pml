/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ring.pml - the packet buffer of one channel (native/ring.h, ring.c): publish and consume, give
 * back and reuse, and the generations by which two ends that lost each other agree again.
 *
 * Properties, as assertions:
 *   - no torn record: what the consumer reads was written before, by happens-before
 *   - no reuse of an unread one: what the producer overwrites was read before, the same way
 *   - a record that is read is that of the generation and the position that the consumer is in
 *
 * The consumer may break off and demand a new generation at any time, RESETS times in all (as it
 * does when the other end broke a rule, and when it opens). Either process may die between any two
 * steps, DEATHS times in all; its successor goes on from what lies in shared memory.
 */
#define WORDS 4
#define HISTORY 14
#include "weak.pml"

#define S 0
#define R 1
#define HEAD 0
#define TX_END 1
#define TAIL 2
#define RX_END 3

#define CLOSED 0
#define OPEN 1
#define RESET 2
#define END(gen, state) ((gen) * 4 + (state))
#define GEN(word) ((word) >> 2)
#define STATE(word) ((word) & 3)

#define CAP 2 /* records */
#ifndef FRAMES
#define FRAMES 3
#endif
#ifndef RESETS
#define RESETS 1
#endif
#ifndef DEATHS
#define DEATHS 0
#endif

/* The payload: no atomic words. What the producer meant, and when each side was at it. */
byte meant[CAP]; /* generation * 16 + position */
byte wrote[CAP]; /* the producer's clock */
byte read[CAP];  /* the consumer's clock */

byte resets_left = RESETS, deaths_left = DEATHS;
byte sent;

/* mint_ring_tx_join(), with tx_settle() */
inline join()
{
    load(S, RX_END, !MUTANT(8), end);
    if
    :: STATE(end) != CLOSED && GEN(end) != gen ->
        load(S, TAIL, !MUTANT(4), tail);
        head = tail;
        published = tail;
        store(S, HEAD, head, false);
        gen = GEN(end);
        store(S, TX_END, END(gen, OPEN), !MUTANT(5))
    :: else
    fi
}

/* mint_ring_tx_refresh() */
inline tx_refresh()
{
    join();
    if
    :: STATE(end) == CLOSED || STATE(OWN(S, TX_END)) == RESET
    :: else ->
        load(S, TAIL, !MUTANT(4), seen);
        if
        :: seen < tail || seen > published -> store(S, TX_END, END(gen, RESET), true)
        :: else -> tail = seen
        fi
    fi
}

proctype producer()
{
    byte i, j, end, gen;
    short head, published, tail, seen;

again:
    atomic {
        gen = GEN(OWN(S, TX_END));
        head = OWN(S, HEAD);
        published = head
    }
    load(S, TAIL, !MUTANT(4), tail);
    if
    :: head < tail || head - tail > CAP -> tail = head - CAP
    :: else
    fi;
    if
    :: STATE(OWN(S, TX_END)) == CLOSED -> store(S, TX_END, END(gen, OPEN), true)
    :: else
    fi;
    do
    :: sent == FRAMES -> break
    :: deaths_left > 0 -> deaths_left--; goto again
    :: sent < FRAMES ->
        /* mint_ring_reserve() */
        load(S, RX_END, false, end);
        if
        :: GEN(end) == gen && STATE(end) != CLOSED && head + 1 - tail <= CAP
        :: else -> tx_refresh()
        fi;
        if
        :: GEN(end) == gen && STATE(end) != CLOSED && STATE(OWN(S, TX_END)) != RESET &&
            head + 1 - tail <= CAP ->
            d_step {
                assert(read[head % CAP] <= known[S]); /* reuse of an unread record */
                meant[head % CAP] = gen * 16 + head;
                wrote[head % CAP] = clock[S];
                head++;
                sent++
            }
            if /* more to the batch, or mint_ring_publish() */
            :: head - tail < CAP && sent < FRAMES
            :: true ->
                load(S, RX_END, true, end);
                if
                :: GEN(end) != gen -> join()
                :: else -> store(S, HEAD, head, !MUTANT(1)); published = head
                fi
            fi
        :: else
        fi
    :: true -> join() /* its doorbell rang */
    od
}

/* rx_demand() */
inline demand()
{
    atomic {
        gen = GEN(OWN(R, RX_END)) + 1;
        if
        :: gen == GEN(value[AT(TX_END, VIEW(R, TX_END))]) -> gen++
        :: else
        fi;
        next = released;
        head = released;
        open = false
    }
    store(R, TAIL, released, !MUTANT(9));
    store(R, RX_END, END(gen, RESET), !MUTANT(7))
}

/* mint_ring_rx_refresh() */
inline rx_refresh()
{
    load(R, TX_END, !MUTANT(6), end);
    if
    :: end == END(gen, RESET) && resets_left > 0 -> resets_left--; demand()
    :: end == END(gen, OPEN) || end == END(gen, CLOSED) ->
        if
        :: !open -> open = true; store(R, RX_END, END(gen, OPEN), true)
        :: else
        fi;
        load(R, HEAD, !MUTANT(2), head);
        if
        :: head < next || head - next > CAP ->
            head = next;
            if
            :: resets_left > 0 -> resets_left--; demand()
            :: else -> goto done
            fi
        :: else
        fi
    :: else
    fi
}

proctype consumer()
{
    byte i, j, end, gen;
    short head, next, released;
    bool open;

again:
    atomic {
        gen = GEN(OWN(R, RX_END));
        released = OWN(R, TAIL);
        next = released;
        head = released;
        open = STATE(OWN(R, RX_END)) == OPEN
    }
    if
    :: STATE(OWN(R, RX_END)) == CLOSED -> demand()
    :: else
    fi;
    do
    :: goto done
    :: deaths_left > 0 -> deaths_left--; goto again
    :: resets_left > 0 && gen > 0 -> resets_left--; demand()
    :: next == head -> rx_refresh()
    :: next < head ->
        d_step {
            assert(wrote[next % CAP] <= known[R]);      /* a torn record */
            assert(meant[next % CAP] == gen * 16 + next); /* another's record */
            read[next % CAP] = clock[R];
            next++;
            released++
        }
    :: released != OWN(R, TAIL) -> store(R, TAIL, released, !MUTANT(3)) /* mint_ring_recycle() */
    od;
done:
    skip
}

init
{
    atomic {
        READ_MUTANT;
        run producer();
        run consumer()
    }
}

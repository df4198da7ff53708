/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pooled.pml - one channel of layout pooled (native/pooled.h, pooled.c): descriptors of buffers in
 * the sender's pool, taken back when the receiver's tail moves or its generation ends.
 *
 * What ring.pml says of positions and generations holds here, too. What differs is that a record is
 * no longer where its position says: its buffer is any that is free, named by a descriptor, and may
 * wait for a second receiver as well. Of that one only the reference is modelled, which goes at any
 * time: its own channel is another instance of this one.
 *
 * Properties, as assertions:
 *   - what the receiver reads was written before, and by the one who published it there
 *   - a buffer is written only when everybody for whom it waited has read it
 *   - no buffer is lost: as many references as there are descriptors that are not settled
 *
 * CRASH 1: the sender's process may die between any two steps, once, and its successor claims what
 * lies in shared memory (claim() in pooled.c). CRASH 2: the receiver's.
 */
#define WORDS 6
#define HISTORY 9
#include "weak.pml"

#define S 0
#define R 1
#define HEAD 0
#define TX_END 1
#define TAIL 2
#define RX_END 3
#define DESC(pos) (4 + (pos) % CAP)

#define CLOSED 0
#define OPEN 1
#define RESET 2
#define END(gen, state) ((gen) * 4 + (state))
#define GEN(word) ((word) >> 2)
#define STATE(word) ((word) & 3)

#define CAP 2  /* descriptors */
#define BUFS 2 /* buffers */
#ifndef FRAMES
#define FRAMES 3
#endif
#ifndef RESETS
#define RESETS 1
#endif

bit crashed;
#define MAY_DIE \
    if \
    :: !crashed -> crashed = 1; goto again \
    :: true \
    fi
#if CRASH == 1
#define S_MAY_DIE MAY_DIE
#else
#define S_MAY_DIE skip
#endif
#if CRASH == 2
#define R_MAY_DIE MAY_DIE
#else
#define R_MAY_DIE skip
#endif

/* The buffers: no atomic words. What the sender meant, and when each side was at it. */
byte meant[BUFS]; /* generation * 16 + position */
byte wrote[BUFS]; /* the sender's clock */
byte read[BUFS];  /* the receiver's clock */
byte refs[BUFS];  /* the sender's own account */
bool other[BUFS]; /* waits for the second receiver, too */
short note;       /* `settled`, as the sender's own region has it for its successor */

byte resets_left = RESETS, sent;

/* give_back(): the references of the descriptors up to `to` */
inline give_back(to)
{
    d_step {
        do
        :: settled < to ->
            b = OWN(S, DESC(settled));
            if
            :: refs[b] > 0 && MUTANT(8) -> refs[b] = 0; /* whoever else it waits for */
            :: refs[b] > 0 && !MUTANT(8) -> refs[b]--
            :: else
            fi;
            settled++
        :: else -> break
        od;
        b = 0
    }
}

/* mint_ring_tx_join(), with mint_lane_place() */
inline join()
{
    load(S, RX_END, !MUTANT(6), end);
    if
    :: STATE(end) != CLOSED && GEN(end) != gen ->
        load(S, TAIL, true, tail);
        give_back(head);
        S_MAY_DIE;
        settled = tail;
        note = tail;
        S_MAY_DIE;
        head = tail;
        published = tail;
        store(S, HEAD, head, false);
        S_MAY_DIE;
        gen = GEN(end);
        store(S, TX_END, END(gen, OPEN), true)
    :: else
    fi
}

/* settle() */
inline settle()
{
    join();
    if
    :: STATE(end) == CLOSED || STATE(OWN(S, TX_END)) == RESET
    :: else ->
        load(S, TAIL, !MUTANT(4), tail);
        if
        :: tail < settled || tail > head ->
            store(S, TX_END, END(gen, RESET), true);
            tail = settled
        :: else ->
            if
            :: MUTANT(9) && tail < head -> give_back(tail + 1) /* one that is not read yet */
            :: else -> give_back(tail)
            fi;
            S_MAY_DIE;
            note = settled
        fi
    fi
}

/* mint_pooled_open() and mint_pooled_tx_open(), with claim() */
inline start_again()
{
    d_step {
        gen = GEN(OWN(S, TX_END));
        head = OWN(S, HEAD);
        published = head;
        settled = note;
        refs[0] = other[0];
        refs[1] = other[1];
        k = settled;
        do
        :: k < head && !MUTANT(10) -> refs[OWN(S, DESC(k))]++; k++
        :: else -> break
        od;
        k = 0
    }
    load(S, TAIL, true, tail);
    if
    :: tail < settled || tail > head -> tail = settled
    :: else
    fi
}

proctype sender()
{
    byte i, j, b, end, gen, k;
    short head, published, tail, settled;

again:
    start_again();
    do
    :: sent == FRAMES -> break
#if CRASH == 1
    :: !crashed -> crashed = 1; goto again
#endif
    :: sent < FRAMES && (refs[0] == 0 || refs[1] == 0) ->
        load(S, RX_END, false, end);
        if
        :: GEN(end) == gen && STATE(end) != CLOSED && head + 1 - tail <= CAP
        :: else -> settle()
        fi;
        if
        :: GEN(end) == gen && STATE(end) != CLOSED && STATE(OWN(S, TX_END)) != RESET &&
            head + 1 - tail <= CAP && (refs[0] == 0 || refs[1] == 0) ->
            d_step {
                /* the lowest that is free, as mint_stock_take() */
                b = (refs[0] == 0 -> 0 : 1);
                assert(read[b] <= known[S]); /* reuse of what is still to be read */
                assert(!other[b]);           /* the same, of the second receiver's */
                meant[b] = gen * 16 + head;
                wrote[b] = clock[S];
                refs[b] = 1
            }
            if
            :: atomic { true -> other[b] = true; refs[b]++ } /* sent to both */
            :: true
            fi;
            S_MAY_DIE;
            store(S, DESC(head), b, false);
            head++;
            assert(refs[0] + refs[1] == head - settled + other[0] + other[1]); /* none is lost */
            S_MAY_DIE;
            sent++;
            b = 0;
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
    :: settled < published -> settle() /* a run is searched for */
    :: true -> join()                  /* its doorbell rang */
    :: atomic { other[0] -> other[0] = false; refs[0] = (refs[0] > 0 -> refs[0] - 1 : 0) }
    :: atomic { other[1] -> other[1] = false; refs[1] = (refs[1] > 0 -> refs[1] - 1 : 0) }
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
    store(R, TAIL, released, !MUTANT(7));
    R_MAY_DIE;
    store(R, RX_END, END(gen, RESET), !MUTANT(5))
}

/* mint_ring_rx_refresh() */
inline rx_refresh()
{
    load(R, TX_END, true, end);
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

proctype receiver()
{
    byte i, j, b, end, gen;
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
    do
    :: goto done
#if CRASH == 2
    :: !crashed -> crashed = 1; goto again
#endif
    :: resets_left > 0 -> resets_left--; demand()
    :: next == head -> rx_refresh()
    :: next < head ->
        load(R, DESC(next), false, b);
        d_step {
            assert(wrote[b] <= known[R]);         /* a torn record */
            assert(meant[b] == gen * 16 + next); /* another's record */
            read[b] = clock[R];
            b = 0;
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
        value[AT(TX_END, 0)] = END(0, OPEN); /* how they come to that is ring.pml's */
        value[AT(RX_END, 0)] = END(0, OPEN);
        run sender();
        run receiver()
    }
}

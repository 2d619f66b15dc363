// What a work item keeps in cache, and how it gets there.
//
// Memory is planes of M elements: time steps, or components of a state. A work item takes a strip of neighbouring
// positions from some rows of them, one block (a lane of positions) at a time; several short rows are done together. In
// cache they are a column, column[row][plane], or for all blocks of a strip a tile, tile[block][row][plane].
#pragma once
#include "cpu_lane.h"

namespace PMSN_NAMESPACE {

static index_t ceil_div(index_t a, index_t b) { return (a + b - 1) / b; }

static index_t strip_count(const Layout& layout) { return ceil_div(layout.P, layout.strip); }
static index_t segment_count(const Layout& layout) { return ceil_div(layout.T, layout.segment); }
static index_t item_count(const Layout& layout) { return strip_count(layout) * layout.groups * segment_count(layout); }

// One work item of a Layout (args.h).
struct WorkItem {
    index_t position, width, row, end_row, start, end;  // rows, and time steps

    WorkItem(const Layout& layout, index_t index) {
        const index_t strips = strip_count(layout), rows = ceil_div(layout.M, layout.P);
        const index_t group = index / strips % layout.groups;
        position = index % strips * layout.strip;
        width = layout.P - position < layout.strip ? layout.P - position : layout.strip;
        row = rows * group / layout.groups;
        end_row = rows * (group + 1) / layout.groups;
        start = index / (strips * layout.groups) * layout.segment;
        end = layout.T - start < layout.segment ? layout.T : start + layout.segment;
    }
};

// Rows done together: 64 steps of them, but one row where it has checkpoints.
static index_t batch_rows(const Layout& layout) {
    return layout.T > layout.interval || layout.T > 32 ? 1 : 64 / layout.T;
}

// Planes first..first+count of the rows of a batch; in cache a plane's index counts from `first`.
struct Planes {
    index_t offset, valid, rows, row_stride, count, stride;
};

struct Batch {
    index_t row, offset, valid, rows;  // first row; first element in a plane; elements of each row; how many rows

    // The item's batch of `most` rows from `row` on; no rows when there is none. Only the last row of a plane can be
    // short.
    Batch(const Layout& layout, const WorkItem& item, index_t first_row, index_t most)
        : row(first_row),
          offset(row * layout.P + item.position),
          valid(0),
          rows(0) {
        const index_t rest = layout.M - offset;
        if (rest <= 0) return;
        valid = rest < item.width ? rest : item.width;
        while (rows < most && row + rows < item.end_row && rest - rows * layout.P >= valid) ++rows;
    }
    Planes planes(const Layout& layout, index_t first, index_t count) const {
        return {first * layout.M + offset, valid, rows, layout.P, count, layout.M};
    }
};

// What comes after the blocks at hand: the next block of the batch, or the first one of the planes that follow.
struct NextBlock {
    const Planes& planes;
    index_t block;

    NextBlock(const Batch& batch, index_t next_block, const Planes& here, const Planes& next, index_t width)
        : planes(next_block * width < batch.valid ? here : next),
          block(next_block * width < batch.valid ? next_block : 0) {}
};

template <class L, class Memory>
PMSN_FN L load_part(const typename Memory::element* from, index_t valid) {
    typename Memory::element buffer[sizeof(L) / sizeof(real_of<L>)] = {};
    for (index_t i = 0; i < valid; ++i) buffer[i] = from[i];
    return Memory::load(buffer);
}
template <class L, class Memory>
PMSN_FN void store_part(typename Memory::element* to, L lane, index_t valid) {
    typename Memory::element buffer[sizeof(L) / sizeof(real_of<L>)];
    Memory::store(buffer, lane);
    for (index_t i = 0; i < valid; ++i) to[i] = buffer[i];
}

#if PMSN_LANE_BYTES == 64 && defined(__AVX512F__)
template <>
PMSN_FN float_lane load_part<float_lane, Plain<float_lane>>(const float* from, index_t valid) {
    return _mm512_maskz_loadu_ps((1 << valid) - 1, from);
}
template <>
PMSN_FN double_lane load_part<double_lane, Plain<double_lane>>(const double* from, index_t valid) {
    return _mm512_maskz_loadu_pd((1 << valid) - 1, from);
}
template <>
PMSN_FN void store_part<float_lane, Plain<float_lane>>(float* to, float_lane lane, index_t valid) {
    _mm512_mask_storeu_ps(to, (1 << valid) - 1, lane);
}
template <>
PMSN_FN void store_part<double_lane, Plain<double_lane>>(double* to, double_lane lane, index_t valid) {
    _mm512_mask_storeu_pd(to, (1 << valid) - 1, lane);
}
#endif

// Blocks that share a line of memory; those that are moved together where steps lie a power of two apart, and those
// whose lines are asked for together.
enum {
    LINE_BLOCKS = 64 / PMSN_LANE_BYTES,
    TOGETHER = LINE_BLOCKS > 1 ? 4 * LINE_BLOCKS : 1,
    ASKED_BLOCKS = LINE_BLOCKS > 1 ? 4 : 1
};

// Calls `move(lane, its first element in memory, elements)` for `count` blocks from b on, plane by plane:
// so a line of memory is used up when it comes. Where planes lie a power of two apart, it would not be there any more
// for the next block.
template <int COUNT, bool WHOLE, class L, class Element, class Move>
PMSN_FN void move_planes(L* lanes, index_t depth, index_t pitch, Element* memory, const Planes& planes, index_t b,
                         const Move& move) {
    const index_t width = lane_width<real_of<L>>(), left = planes.valid - b * width;
    for (index_t s = 0; s < planes.rows; ++s, lanes += depth) {
        Element* at = memory + planes.offset + b * width + s * planes.row_stride;
        for (index_t i = 0; i < planes.count; ++i, at += planes.stride) {
            PMSN_UNROLL
            for (int w = 0; w < COUNT; ++w) {
                const index_t rest = left - w * width;
                move(lanes[w * pitch + i], at + w * width, WHOLE || rest > width ? width : rest);
            }
        }
    }
}
// The same, COUNT at once as often as that many whole ones are left, and then fewer.
template <int COUNT, class L, class Element, class Move>
PMSN_FN void move_columns(L* lanes, index_t depth, index_t pitch, Element* memory, const Planes& planes, index_t b,
                          int count, const Move& move) {
    const index_t width = lane_width<real_of<L>>();
    for (; count >= COUNT && planes.valid >= (b + COUNT) * width; count -= COUNT, b += COUNT, lanes += COUNT * pitch)
        move_planes<COUNT, true>(lanes, depth, pitch, memory, planes, b, move);
    if constexpr (COUNT > 1) move_columns<COUNT / 2>(lanes, depth, pitch, memory, planes, b, count, move);
    else if (count > 0) move_planes<1, false>(lanes, depth, pitch, memory, planes, b, move);
}

// Blocks b..b+count of `rows`: one lane of each plane, `depth` lanes from one row to the next, `pitch` lanes from one
// block to the next. The rest of the last lane is read as zero.
template <class L, class Memory>
static void load_column(L* lanes, index_t depth, const void* memory, const Planes& planes, index_t b, int count = 1,
                        index_t pitch = 0) {
    typedef const typename Memory::element Element;
    move_columns<TOGETHER>(
        lanes, depth, pitch, (Element*)memory, planes, b, count, [](L& lane, Element* from, index_t valid) {
            lane = valid == lane_width<real_of<L>>() ? Memory::load(from) : load_part<L, Memory>(from, valid);
        });
}
template <class L, class Memory>
static void store_column(const L* lanes, index_t depth, void* memory, const Planes& planes, index_t b, int count = 1,
                         index_t pitch = 0) {
    typedef typename Memory::element Element;
    move_columns<TOGETHER>(
        (L*)lanes, depth, pitch, (Element*)memory, planes, b, count, [](L& lane, Element* to, index_t valid) {
            valid == lane_width<real_of<L>>() ? Memory::store(to, lane) : store_part<L, Memory>(to, lane, valid);
        });
}

template <class L>
static void clear(L* lanes, index_t count) {
    for (index_t i = 0; i < count; ++i) lanes[i] = L{};
}

template <class L>
struct Tile {
    L* lanes;
    index_t blocks, pitch, depth;

    L* block(index_t b) const { return lanes + b * pitch; }

    // Memory of the arithmetic's own type; null reads as zero, and is not written.
    void load(index_t plane, const void* memory, const Planes& planes) const {
        for (index_t b = 0; b * lane_width<real_of<L>>() < planes.valid; ++b)
            if (memory) load_column<L, Plain<L>>(block(b) + plane, depth, memory, planes, b);
            else
                for (index_t s = 0; s < planes.rows; ++s) clear(block(b) + s * depth + plane, planes.count);
    }
    void store(index_t plane, void* memory, const Planes& planes) const {
        if (!memory) return;
        for (index_t b = 0; b * lane_width<real_of<L>>() < planes.valid; ++b)
            store_column<L, Plain<L>>(block(b) + plane, depth, memory, planes, b);
    }
};

// Columns of time steps, of neighbouring blocks, as a pass walks through them: in cache, or in memory as they are.
template <class L>
struct Columns {
    char* first;
    index_t block_stride, row_stride, stride;  // bytes

    static Columns in_cache(L* lanes, index_t steps, index_t pitch = 0) {
        return {(char*)lanes, index_t(pitch * sizeof(L)), index_t(steps * sizeof(L)), sizeof(L)};
    }

    PMSN_FN Columns block(index_t b) const { return {first + b * block_stride, block_stride, row_stride, stride}; }
    PMSN_FN void next_block() { first += block_stride; }
    PMSN_FN L load(index_t s, index_t t, int block = 0) const { return Plain<L>::load(at(s, t, block)); }
    PMSN_FN void store(index_t s, index_t t, L lane, int block = 0) const { Plain<L>::store(at(s, t, block), lane); }

private:
    PMSN_FN real_of<L>* at(index_t s, index_t t, int block) const {
        return (real_of<L>*)(first + block * block_stride + s * row_stride + t * stride);
    }
};

// Time steps in memory of any type; half precision comes with float arithmetic only. Null reads as zero, and is not
// written.
template <class L>
struct Steps {
    void* memory;
    index_t storage;

    Steps(const void* m, index_t type) : memory((void*)m), storage(type) {}

    // Blocks b..b+count, to read from: `lanes` is where they are brought if need be, `pitch` lanes from one to the
    // next.
    Columns<L> read(L* lanes, const Planes& planes, index_t b, int count = 1, index_t pitch = 0) const {
        if (direct(planes, b + count - 1)) return columns(planes, b);
        load(lanes, planes, b, count, pitch);
        return Columns<L>::in_cache(lanes, planes.count, pitch);
    }
    // To write to; `finish` brings them to memory if need be.
    Columns<L> write(L* lanes, const Planes& planes, index_t b, int count = 1, index_t pitch = 0) const {
        return direct(planes, b + count - 1) ? columns(planes, b) : Columns<L>::in_cache(lanes, planes.count, pitch);
    }
    void finish(const L* lanes, const Planes& planes, index_t b, int count = 1, index_t pitch = 0) const {
        if (!direct(planes, b + count - 1)) store(lanes, planes, b, count, pitch);
    }

    void load(L* lanes, const Planes& planes, index_t b, int count = 1, index_t pitch = 0) const {
        if (!memory) {
            for (int w = 0; w < count; ++w) clear(lanes + w * pitch, planes.rows * planes.count);
            return;
        }
        const index_t n = planes.count;
        if constexpr (sizeof(real_of<L>) == 4) {
            if (storage == STORAGE_HALF) return load_column<L, Half>(lanes, n, memory, planes, b, count, pitch);
            if (storage == STORAGE_BFLOAT16) return load_column<L, Bfloat16>(lanes, n, memory, planes, b, count, pitch);
        }
        load_column<L, Plain<L>>(lanes, n, memory, planes, b, count, pitch);
    }
    void store(const L* lanes, const Planes& planes, index_t b, int count = 1, index_t pitch = 0) const {
        if (!memory) return;
        const index_t n = planes.count;
        if constexpr (sizeof(real_of<L>) == 4) {
            if (storage == STORAGE_HALF) return store_column<L, Half>(lanes, n, memory, planes, b, count, pitch);
            if (storage == STORAGE_BFLOAT16)
                return store_column<L, Bfloat16>(lanes, n, memory, planes, b, count, pitch);
        }
        store_column<L, Plain<L>>(lanes, n, memory, planes, b, count, pitch);
    }

private:
    // Whole lanes of the arithmetic's own type need no copy.
    bool direct(const Planes& planes, index_t last) const {
        const index_t plain = sizeof(real_of<L>) == 4 ? STORAGE_FLOAT : STORAGE_DOUBLE;
        return memory && storage == plain && planes.valid >= (last + 1) * lane_width<real_of<L>>();
    }
    Columns<L> columns(const Planes& planes, index_t b) const {
        typedef real_of<L> R;
        R* first = (R*)memory + planes.offset + b * lane_width<R>();
        return {(char*)first, sizeof(L), index_t(planes.row_stride * sizeof(R)), index_t(planes.stride * sizeof(R))};
    }
};

// Asks for columns that will be needed soon, line by line: they lie too far apart for the hardware to see a pattern,
// and all at once they would hold up the loads of the moment.
struct Prefetch {
    // Forward: lines of x that come after two others go to the cache of first level, where a line holds several
    // blocks; otherwise the next line goes to the second.
    enum { AHEAD = LINE_BLOCKS > 1 ? 2 * LINE_BLOCKS : 1, NEAR = LINE_BLOCKS > 1 };

    const char* first;
    index_t row_stride, stride;  // bytes
    // of a whole strip: from one block to the next, and what is added from block `wrap` on
    index_t block_stride = 0, wrap = 0, jump = 0;

    // Of `count` blocks it asks for the end: where lanes lie across lines, the blocks before had the beginning. With
    // the beginning alone every other store waited for its line, or with lanes of a line every one: two to three times
    // as long.
    template <class L>
    Prefetch(const Steps<L>& steps, const Planes& planes, index_t b, int count = 1) {
        const index_t bytes = steps.storage == STORAGE_DOUBLE ? 8 : steps.storage == STORAGE_FLOAT ? 4 : 2;
        const index_t last = count * lane_width<real_of<L>>() - 1;
        const bool wanted = steps.memory && planes.rows;
        first =
            (const char*)steps.memory + (wanted ? (planes.offset + b * lane_width<real_of<L>>() + last) * bytes : 0);
        row_stride = wanted ? planes.row_stride * bytes : 0;
        stride = wanted ? planes.stride * bytes : 0;
        block_stride = wanted ? lane_width<real_of<L>>() * bytes : 0;
    }
    // Of a strip of `blocks` blocks, for the first one: the block that comes AHEAD of it, in the planes that follow
    // where there are no more here.
    template <class L>
    static Prefetch ahead(const Steps<L>& steps, const Planes& here, const Planes& next, index_t blocks) {
        const index_t ahead = blocks < AHEAD ? blocks : index_t(AHEAD);
        Prefetch prefetch(steps, here, ahead);
        const Prefetch end(steps, here, blocks), then(steps, next.rows ? next : here, 0);
        prefetch.wrap = blocks - ahead;
        prefetch.jump = then.first - end.first;
        return prefetch;
    }
    // The same for block b.
    PMSN_FN Prefetch block(index_t b) const {
        Prefetch there = *this;
        there.first += b * block_stride + (b >= wrap ? jump : 0);
        there.wrap = b >= wrap ? 0 : wrap - b;
        there.jump = b >= wrap ? 0 : jump;
        return there;
    }

    // The same from the last plane to the first.
    PMSN_FN Prefetch backwards(index_t planes) const {
        Prefetch there = *this;
        there.first += (planes - 1) * stride;
        there.stride = -stride;
        return there;
    }

    // What follows takes no notice of the end of a strip.
    PMSN_FN void next_block() { first += block_stride; }

    template <int BYTES, bool FIRST_LEVEL = false>
    PMSN_FN void ask(index_t s, index_t t) const {
        const char* line = first + s * row_stride + t * stride;
        PMSN_UNROLL
        for (int i = 0; i < BYTES; i += 64) __builtin_prefetch(line + i, 0, FIRST_LEVEL ? 3 : 2);
    }
};

// What backward will need. It asks for this in turn, for one after the other is all that memory keeps up with.
struct PrefetchBackward {
    Prefetch grad_out, dx;

    PMSN_FN void ask(index_t s, index_t t) const { grad_out.ask<1>(s, t), dx.ask<1>(s, t); }
};

// The same for few planes of the arithmetic's own type, at once.
template <class L>
static void ask_planes(const void* memory, const Planes& planes, index_t b) {
    const real_of<L>* line = (const real_of<L>*)memory + planes.offset + b * lane_width<real_of<L>>();
    for (index_t i = 0; i < planes.count; ++i, line += planes.stride) __builtin_prefetch(line, 1, 2);
}

// Neighbouring positions of an item that share a channel.
struct ChannelRun {
    index_t channel, begin, end;

    ChannelRun(const Layout& layout, const WorkItem& item) : begin(0) {
        const index_t q = item.position / layout.S;  // counts the channels over all positions of a row
        channel = q % layout.C;
        end = (q + 1) * layout.S - item.position;
        if (end > item.width) end = item.width;
    }
    void advance(const Layout& layout, const WorkItem& item) {
        if (++channel == layout.C) channel = 0;  // a division would take as long as the rest
        begin = end;
        end = end + layout.S < item.width ? end + layout.S : item.width;
    }
};

// Parameters [C, count] of the strip's positions as planes of a tile of one row.
template <class L>
static void gather_parameters(const Tile<L>& tile, index_t plane, const Layout& layout, const WorkItem& item,
                              const void* parameters, index_t count) {
    const real_of<L>* values = (const real_of<L>*)parameters;
    const index_t width = lane_width<real_of<L>>();
    for (index_t b = item.width / width; b < tile.blocks; ++b) clear(tile.block(b) + plane, count);
    for (ChannelRun run(layout, item); run.begin < item.width; run.advance(layout, item)) {
        const real_of<L>* row = values + run.channel * count;
        for (index_t p = run.begin; p < run.end;) {
            L* lanes = tile.block(p / width) + plane;
            real_of<L>* to = (real_of<L>*)lanes + p % width;
            if (layout.S == 1 && p % width == 0 && p + width <= item.width && run.channel + width <= layout.C) {
                // a channel for every position: lane by lane, in a third of the time
                for (index_t j = 0; j < count; ++j, to += width)
                    for (index_t i = 0; i < lane_width<real_of<L>>(); ++i) to[i] = row[i * count + j];
                run.channel += width - 1, run.end = p += width;
            } else if (p % width == 0 && p + width <= run.end) {
                for (index_t j = 0; j < count; ++j) lanes[j] = splat<L>(row[j]);
                p += width;
            } else {
                for (index_t j = 0; j < count; ++j, to += width) *to = row[j];
                ++p;
            }
        }
    }
}

// An item's sums per channel, as [count, slots]: slot q - q0 holds channel q % C, where q0 is the strip's first
// position / S.
static index_t channel_slots(const Layout& layout) { return (layout.strip - 1) / layout.S + 2; }

template <class L>
static void sum_by_channel(real_of<L>* partial, const Tile<L>& sums, const Layout& layout, const WorkItem& item) {
    typedef real_of<L> R;
    const index_t width = lane_width<R>(), slots = channel_slots(layout);
    if (layout.S == 1) {
        for (index_t j = 0; j < sums.depth; ++j, partial += slots)
            for (index_t p = 0; p < item.width; p += width)
                store_part<L, Plain<L>>(partial + p, sums.block(p / width)[j],
                                        item.width - p < width ? item.width - p : width);
        return;
    }
    for (ChannelRun run(layout, item); run.begin < item.width; run.advance(layout, item), ++partial) {
        for (index_t j = 0; j < sums.depth; ++j) partial[j * slots] = 0;
        for (index_t p = run.begin; p < run.end;) {
            const L* lanes = sums.block(p / width);
            const index_t first = p % width, last = run.end - p < width - first ? first + run.end - p : width;
            for (index_t j = 0; j < sums.depth; ++j)
                for (index_t i = first; i < last; ++i) partial[j * slots] += ((const R*)(lanes + j))[i];
            p += last - first;
        }
    }
}

// Totals [count, end - begin] of those channels in all items' slots, added in the order of the items.
template <class R>
static void reduce_channels(const Layout& layout, const R* partials, index_t count, double* totals, index_t begin,
                            index_t end_channel) {
    const index_t slots = channel_slots(layout), C = layout.C, channels = end_channel - begin;
    for (index_t i = 0; i < channels * count; ++i) totals[i] = 0;
    for (index_t index = 0; index < item_count(layout); ++index, partials += slots * count) {
        const WorkItem item(layout, index);
        const index_t first = item.position / layout.S, end = (item.position + item.width - 1) / layout.S + 1;
        for (index_t q = first; q < end;) {  // up to where the channels begin anew
            const index_t c = q % C, run = end - q < C - c ? end - q : C - c;
            const index_t low = c < begin ? begin : c, high = c + run < end_channel ? c + run : end_channel;
            for (index_t j = 0; j < count && low < high; ++j) {
                const R* from = partials + j * slots + q - first + low - c;
                double* to = totals + j * channels + low - begin;
                for (index_t i = 0; i < high - low; ++i) to[i] += from[i];
            }
            q += run;
        }
    }
}

// Cuts the thread's scratch memory into tiles.
template <class L>
struct Scratch {
    L* next;
    index_t blocks;

    Tile<L> tile(index_t rows, index_t depth) {
        const Tile<L> tile = {next, blocks, rows * depth, depth};
        next += blocks * rows * depth;
        return tile;
    }
    L* lanes(index_t count) {
        L* first = next;
        next += apart(count);
        return first;
    }
    // Arrays of equal size would meet on the same few cache sets.
    static index_t apart(index_t count) { return count + 3; }
};

template <class R>
static index_t block_count(const Layout& layout) {
    return (layout.strip + lane_width<R>() - 1) / lane_width<R>();
}

}  // namespace PMSN_NAMESPACE

#include "runtime/data/images/image_loader.h"

#include <gmock/gmock.h>

#include <map>
#include <set>

#include "tests/runtime/data/images/image_fixture.h"

namespace shoal {
namespace {

using config::ImageDataConfig;
using testing::HasSubstr;

// What training sees of one sample position.
struct Seen {
  int32_t label = 0;
  std::vector<float> x;
  bool operator==(const Seen&) const = default;
};
using SeenBy = std::map<int64_t, Seen>;  // by sample id

void Collect(const ImageMicroBatch& micro, SeenBy& seen) {
  const auto images = static_cast<int64_t>(micro.labels.size());
  ASSERT_EQ(micro.x.dim(0), images);
  ASSERT_EQ(static_cast<int64_t>(micro.sample_ids.size()), images);
  const int64_t row = images == 0 ? 0 : micro.x.size() / images;
  for (int64_t i = 0; i < images; ++i) {
    const float* x = micro.x.data<float>() + i * row;
    EXPECT_TRUE(seen.insert({micro.sample_ids[i], {micro.labels[i], {x, x + row}}}).second)
        << "sample " << micro.sample_ids[i] << " twice";
  }
}

class ImageLoaderTest : public ImageFolderTest {
 protected:
  // 50 training and 23 held-out images of 32 x 32 with everything that is random.
  std::unique_ptr<ImageData> Cifar() const {
    WriteCifar("cifar/data_batch_1.bin", 50);
    WriteCifar("cifar/test_batch.bin", 23, 100);
    auto config = Config(Path("cifar"));
    config.mutable_randaugment()->set_magnitude(9);
    return *ImageData::Open(config);
  }
  static SeenBy Steps(const ImageData& data, ImageLoaderOptions options, const std::vector<int64_t>& batches,
                      int64_t first = 0) {
    auto loader = *ImageLoader::Create(data, options, first, batches[0]);
    SeenBy seen;
    int64_t position = first;
    for (const int64_t images : batches) {
      const auto step = loader->Next(images);
      EXPECT_TRUE(step.ok()) << step.status();
      EXPECT_EQ((*step)->first_position, position);
      EXPECT_EQ((*step)->next_position, position += images);
      EXPECT_EQ((*step)->global_images, images);
      for (const ImageMicroBatch& micro : (*step)->micro) Collect(micro, seen);
    }
    return seen;
  }
};

TEST_F(ImageLoaderTest, AnyNumberOfRanksAndThreadsSeesTheSameImages) {
  const auto data = Cifar();
  const std::vector<int64_t> batches(9, 16);
  const SeenBy want = Steps(*data, {.seed = 5, .prefetch_threads = 0}, batches);
  ASSERT_EQ(want.size(), 144u);
  for (const int ranks : {1, 2, 3, 4}) {
    for (const int threads : {1, 2, 3}) {
      SeenBy got;
      for (int rank = 0; rank < ranks; ++rank) {
        const SeenBy mine = Steps(*data,
                                  {.micro_images = 3,
                                   .seed = 5,
                                   .rank = rank,
                                   .ranks = ranks,
                                   .prefetch_threads = threads,
                                   .prefetch_steps = 1 + threads % 3},
                                  batches);
        got.insert(mine.begin(), mine.end());
      }
      EXPECT_TRUE(got == want) << ranks << " ranks, " << threads << " threads";
    }
  }
  EXPECT_FALSE(Steps(*data, {.seed = 6}, batches) == want);
}

TEST_F(ImageLoaderTest, AnEpochTakesEveryImageOnceInANewOrder) {
  WriteIdx("train", 60, 8, 60);
  WriteIdx("t10k", 5, 8, 5);
  auto config = Config(folder_);
  config.set_crop(ImageDataConfig::NONE);
  const auto data = *ImageData::Open(config);
  const SeenBy seen = Steps(*data, {}, std::vector<int64_t>(18, 10));
  std::vector<std::vector<int32_t>> epochs(3);
  for (const auto& [position, image] : seen) epochs[position / 60].push_back(image.label);
  for (const auto& labels : epochs) EXPECT_EQ(std::set<int32_t>(labels.begin(), labels.end()).size(), 60u);
  EXPECT_NE(epochs[0], epochs[1]);
  EXPECT_NE(epochs[1], epochs[2]);
}

TEST_F(ImageLoaderTest, ALoaderStartsAnywhereAndBatchesMayGrow) {
  const auto data = Cifar();
  const SeenBy want = Steps(*data, {}, std::vector<int64_t>(20, 10));
  SeenBy got = Steps(*data, {.prefetch_threads = 2}, {10, 10, 20, 40, 40, 7, 3}, 0);
  const SeenBy rest = Steps(*data, {.prefetch_threads = 2}, {70}, 130);
  got.insert(rest.begin(), rest.end());
  EXPECT_TRUE(got == want);
}

TEST_F(ImageLoaderTest, MicroBatchesAreAsManyOnEveryRank) {
  const auto data = Cifar();
  for (const auto& [images, ranks, micro, parts] : {std::tuple<int64_t, int, int64_t, size_t>{16, 3, 2, 3},
                                                    {16, 1, 16, 1},
                                                    {16, 1, 5, 4},
                                                    {5, 4, 1, 2},
                                                    {7, 2, 100, 1}}) {
    for (int rank = 0; rank < ranks; ++rank) {
      auto loader = *ImageLoader::Create(*data, {.micro_images = micro, .rank = rank, .ranks = ranks}, 0, images);
      const StepImages& step = **loader->Next(images);
      EXPECT_EQ(step.micro.size(), parts) << images << " images, rank " << rank << " of " << ranks;
      for (const ImageMicroBatch& m : step.micro) EXPECT_LE(static_cast<int64_t>(m.labels.size()), micro);
    }
  }
  auto loader = *ImageLoader::Create(*data, {.ranks = 4}, 0, 3);
  EXPECT_THAT(loader->Next(3).status().ToString(), HasSubstr("global_batch.images is 3 and the job has 4 ranks"));
}

TEST_F(ImageLoaderTest, TheStepsMemoryStays) {
  const auto data = Cifar();
  auto loader = *ImageLoader::Create(*data, {.prefetch_threads = 2, .prefetch_steps = 2}, 0, 12);
  std::set<const void*> places;
  for (int step = 0; step < 12; ++step) places.insert((*loader->Next(12))->micro[0].x.raw());
  EXPECT_LE(places.size(), 3u);
}

TEST_F(ImageLoaderTest, TheFirstBatchCanBeRepeated) {
  const auto data = Cifar();
  auto loader = *ImageLoader::Create(*data, {.repeat = ImageLoaderOptions::Repeat::kFirstBatch}, 0, 8);
  SeenBy first, third;
  Collect((*loader->Next(8))->micro[0], first);
  EXPECT_EQ((*loader->Next(8))->next_position, 0);
  Collect((*loader->Next(8))->micro[0], third);
  EXPECT_TRUE(first == third);
}

TEST_F(ImageLoaderTest, RanksTogetherEvaluateEveryImageOnce) {
  const auto data = Cifar();
  SeenBy want;
  for (const int ranks : {1, 2, 3, 4, 7}) {
    SeenBy got;
    std::set<size_t> sizes;
    for (int rank = 0; rank < ranks; ++rank) {
      auto held_out =
          HeldOutImages::Create(*data, {.batch_images = 6, .rank = rank, .ranks = ranks, .prefetch_threads = rank % 3});
      for (;;) {
        const auto batch = held_out->Next();
        ASSERT_TRUE(batch.ok()) << batch.status();
        if (*batch == nullptr) break;
        sizes.insert((*batch)->labels.size());
        Collect(**batch, got);
      }
      EXPECT_EQ(*held_out->Next(), nullptr);
    }
    EXPECT_EQ(sizes, (std::set<size_t>{5, 6}));
    if (ranks == 1) want = got;
    EXPECT_EQ(got.size(), 23u);
    EXPECT_TRUE(got == want) << ranks << " ranks";
  }
  auto some = HeldOutImages::Create(*data, {.batch_images = 6, .max_images = 8});
  EXPECT_EQ((*some->Next())->sample_ids.back(), 5);
  EXPECT_EQ((*some->Next())->sample_ids.back(), 7);
  EXPECT_EQ(*some->Next(), nullptr);
}

class BadImageTest : public ImageLoaderTest {
 protected:
  // Ten images, the fourth of each set cut short behind its header.
  ImageDataConfig Photos() const {
    for (const char* set : {"train", "val"}) {
      for (int i = 0; i < 10; ++i) {
        const std::string name = std::string(set) + "/a/" + std::to_string(i) + ".jpg";
        WriteJpeg(name, Pattern({40, 40, 3}, i));
        if (i == 3) Write(name, Slurp(name).substr(0, Slurp(name).size() - 40));
      }
    }
    auto config = Config(folder_);
    config.set_size(16);
    return config;
  }
};

TEST_F(BadImageTest, AnUnreadableImageIsNamed) {
  const auto data = *ImageData::Open(Photos());
  auto loader = *ImageLoader::Create(*data, {}, 0, 10);
  const auto step = loader->Next(10);
  EXPECT_TRUE(absl::IsDataLoss(step.status()));
  EXPECT_THAT(step.status().ToString(), HasSubstr("train/a/3.jpg: damaged JPEG"));
  auto held_out = HeldOutImages::Create(*data, {});
  EXPECT_THAT(held_out->Next().status().ToString(), HasSubstr("val/a/3.jpg: damaged JPEG"));
}

TEST_F(BadImageTest, OrSkippedAndListed) {
  auto config = Photos();
  config.set_skip_bad_images(true);
  const auto data = *ImageData::Open(config);
  auto loader = *ImageLoader::Create(*data, {}, 0, 10);
  for (int epoch = 0; epoch < 3; ++epoch) {
    const auto step = loader->Next(10);
    ASSERT_TRUE(step.ok()) << step.status();
    EXPECT_EQ((*step)->micro[0].labels.size(), 10u);
  }
  auto held_out = HeldOutImages::Create(*data, {});
  const ImageMicroBatch* batch = *held_out->Next();
  EXPECT_THAT(batch->sample_ids, testing::ElementsAre(0, 1, 2, 4, 5, 6, 7, 8, 9));
  EXPECT_EQ(batch->x.dim(0), 9);
  EXPECT_EQ(data->bad_images().count(), 2);
  EXPECT_THAT(data->Summary(), HasSubstr("2 images left out: "));
  EXPECT_THAT(data->Summary(), HasSubstr("train/a/3.jpg"));
}

}  // namespace
}  // namespace shoal

from django.db import migrations, models

import peasy_jobs.models


class Migration(migrations.Migration):
    dependencies = [
        ("peasy_jobs", "0005_statistics"),
    ]

    operations = [
        migrations.AddIndex(
            model_name="peasyjobqueue",
            index=peasy_jobs.models.LiveIndex(
                fields=["status", "id"], name="peasy_listed", where=models.Q(("id__gte", 0))
            ),
        ),
    ]
